//! Against AWS's programs, which `cargo xtask test` installs once and names in the environment.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::case::{Case, cases, named};

/// A program that `cargo xtask test` names.
fn program(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.unwrap_or_else(|| panic!("{variable} is not set: run these tests by `cargo xtask test`"))
}

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}",
        output.status
    );
    output
}

/// AWS's tool writes a log somewhere, even to describe a file.
fn nitro_cli(case: &Case) -> Command {
    let mut command = Command::new(program("ENCLOS_PEER_NITRO_CLI"));
    command.env("NITRO_CLI_LOGS_PATH", case.folder.path());
    command
}

fn enclos() -> Command {
    Command::new(program("ENCLOS_BIN"))
}

fn stdout(mut command: Command, arguments: &[&str]) -> String {
    String::from_utf8(run(command.args(arguments)).stdout).unwrap()
}

/// The hasher's name is whatever that version's library prints of it; everything else has to be equal.
fn without_hasher(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| !line.contains("\"HashAlgorithm\""));
    lines.collect::<Vec<_>>().join("\n")
}

fn describe(command: Command, path: &Path) -> String {
    without_hasher(&stdout(
        command,
        &["describe-eif", "--eif-path", path.to_str().unwrap()],
    ))
}

#[test]
fn nitro_cli_describes_our_images_as_we_do() {
    for case in cases() {
        let (path, ..) = case.ours();
        let (theirs, ours) = (describe(nitro_cli(&case), &path), describe(enclos(), &path));
        assert_eq!(ours, theirs, "case {}", case.number);
        assert!(
            theirs.contains("\"CheckCRC\": true"),
            "case {}",
            case.number
        );
        let signed = theirs.contains("\"SignatureCheck\": true");
        assert_eq!(signed, case.signing.is_some(), "case {}", case.number);
    }
}

#[test]
fn pcr_prints_what_nitro_cli_prints() {
    for case in (0..20).map(Case::generate) {
        let kernel = case.kernel();
        let mut inputs = vec![("--input", kernel.as_path())];
        inputs.extend(
            case.signing
                .iter()
                .map(|p| ("--signing-certificate", p.certificate.as_path())),
        );
        for (option, path) in inputs {
            let arguments = ["pcr", option, path.to_str().unwrap()];
            assert_eq!(
                stdout(enclos(), &arguments),
                stdout(nitro_cli(&case), &arguments)
            );
        }
    }
}

#[test]
fn an_image_signed_by_one_is_signed_for_the_other() {
    for case in (0..30).map(Case::generate) {
        let Some(pair) = &case.signing else { continue };
        let unsigned = Case {
            signing: None,
            ..Case::generate(case.number)
        };
        for (signs, describes) in [(nitro_cli(&case), enclos()), (enclos(), nitro_cli(&case))] {
            let (path, ..) = unsigned.ours();
            let (key, certificate) = (
                pair.key.to_str().unwrap(),
                pair.certificate.to_str().unwrap(),
            );
            let eif = path.to_str().unwrap();
            let options = [
                "--eif-path",
                eif,
                "--signing-certificate",
                certificate,
                "--private-key",
                key,
            ];
            stdout(signs, &[&["sign-eif"], options.as_slice()].concat());
            let described = describe(describes, &path);
            assert!(
                described.contains("\"SignatureCheck\": true"),
                "case {}: {described}",
                case.number
            );
            assert!(
                described.contains("\"CheckCRC\": true"),
                "case {}: {described}",
                case.number
            );
        }
    }
}

/// Cases that `eif_build` can be given: an argument cannot be empty for it, nor start with a dash, and it signs with randomness.
fn plain_cases() -> impl Iterator<Item = Case> {
    let cases = (0..30).map(Case::generate);
    cases.chain((0..15).map(Case::for_aarch64)).map(|mut case| {
        case.signing = None;
        case.cmdline = format!("console=ttyS0 {}", case.cmdline.trim());
        case.cmdline.truncate(2047);
        case
    })
}

/// The parts of a case as arguments that `eif_build` and `enclos eif assemble` share, the output last.
fn parts(case: &Case, output: &Path) -> Vec<OsString> {
    let custom = case.folder.path().join("custom.json");
    fs::write(&custom, case.metadata["CustomMetadata"].to_string()).unwrap();
    let kernel = case.kernel();
    let mut arguments: Vec<&OsStr> = vec!["--kernel".as_ref(), kernel.as_ref()];
    arguments.extend(["--cmdline".as_ref(), OsStr::new(&case.cmdline)]);
    for ramdisk in &case.ramdisks {
        arguments.extend(["--ramdisk".as_ref(), ramdisk.as_os_str()]);
    }
    arguments.extend(["--metadata".as_ref(), custom.as_os_str()]);
    arguments.extend(["--name".as_ref(), OsStr::new("image")]);
    arguments.extend(["--output".as_ref(), output.as_os_str()]);
    arguments.into_iter().map(OsStr::to_owned).collect()
}

/// What `eif_build` is told of a build.
fn built_by<'t>(tool: &'t str, version: &'t str, time: &'t str, kernel: &'t str) -> [&'t str; 10] {
    [
        "--build-tool",
        tool,
        "--build-tool-version",
        version,
        "--build-time",
        time,
        "--img-os",
        "Linux",
        "--img-kernel",
        kernel,
    ]
}

/// What `eif_build` writes and prints, told when and by what it was built.
fn eif_build(case: &Case, built: [&str; 10]) -> (Vec<u8>, String) {
    let path = case.folder.path().join("built.eif");
    let arch = if case.is_aarch64 { "aarch64" } else { "x86_64" };
    let mut command = Command::new(program("ENCLOS_PEER_EIF_BUILD"));
    command.args(parts(case, &path)).args(["--arch", arch]);
    let output = run(command.args(built));
    let printed = String::from_utf8(output.stdout).unwrap();
    (fs::read(&path).unwrap(), printed)
}

/// `eif_build` takes the name of an image for its version too, and says `null` for what Docker knows of it.
#[test]
fn eif_build_writes_the_same_bytes() {
    for mut case in plain_cases() {
        let time = "2024-01-01T00:00:00+00:00";
        let built = built_by("tool", "1", time, "6.12");
        let (theirs, printed) = eif_build(&case, built);
        case.metadata["ImageName"] = "image".into();
        case.metadata["ImageVersion"] = "image".into();
        case.metadata["DockerInfo"] = serde_json::Value::Null;
        case.metadata["BuildMetadata"] = serde_json::json!({
            "BuildTime": time, "BuildTool": "tool", "BuildToolVersion": "1",
            "OperatingSystem": "Linux", "KernelVersion": "6.12",
        });
        let (_, ours, measurements) = case.ours();
        assert!(ours == theirs, "case {}: the files differ", case.number);
        for (name, value) in named(&measurements) {
            assert!(
                printed.contains(&value),
                "case {}: {name} {value} is not in {printed}",
                case.number
            );
        }
    }
}

/// The commands, told of the same tool and time: the kernels here tell no version.
#[test]
fn eif_assemble_writes_the_bytes_of_eif_build() {
    let version = stdout(enclos(), &["--version"]);
    let version = version.split_whitespace().last().unwrap();
    for case in plain_cases() {
        let time = "1970-01-01T00:00:00+00:00";
        let built = built_by("enclos", version, time, "Unknown");
        let (theirs, _) = eif_build(&case, built);
        let path = case.folder.path().join("assembled.eif");
        let mut assemble = enclos();
        assemble.args(["eif", "assemble", "--version", "image"]);
        run(assemble
            .args(parts(&case, &path))
            .env_remove("SOURCE_DATE_EPOCH"));
        let ours = fs::read(&path).unwrap();
        assert!(ours == theirs, "case {}: the files differ", case.number);
    }
}

/// Names in the first column of a section of a help text.
fn column<'h>(help: &'h str, section: &str) -> Vec<&'h str> {
    let rest = help.split_once(section).unwrap().1;
    let lines = rest.lines().skip(1).take_while(|line| !line.is_empty());
    lines
        .filter_map(|line| line.split_whitespace().find(|word| !word.ends_with(',')))
        .collect()
}

#[test]
fn every_command_and_option_of_nitro_cli_is_there() {
    let case = Case::generate(0);
    let commands = stdout(nitro_cli(&case), &["--help"]);
    let commands = column(&commands, "Commands:");
    assert!(commands.len() >= 9, "{commands:?}");
    for command in commands.into_iter().filter(|command| *command != "help") {
        let (theirs, ours) = (
            stdout(nitro_cli(&case), &[command, "--help"]),
            stdout(enclos(), &[command, "--help"]),
        );
        let options = column(&theirs, "Options:")
            .into_iter()
            .filter(|word| word.starts_with("--"));
        for option in options {
            assert!(
                ours.contains(&format!("{option} ")) || ours.contains(&format!("{option}\n")),
                "{command} {option}"
            );
        }
    }
}

/// Command lines that fail, `{}` being a folder with certificates, keys and files that are something else.
const FAILING: &str = "
    bogus
    run-enclave
    run-enclave x
    run-enclave --bogus
    run-enclave --eif-path {}/none --memory 512
    run-enclave --eif-path {}/none --cpu-count 2
    run-enclave --memory 512 --cpu-count 2
    run-enclave --eif-path {}/none --memory 512 --cpu-count 2 --cpu-ids 1 2
    run-enclave --eif-path {}/none --memory 512 --memory 513 --cpu-count 2
    run-enclave --eif-path {}/none --memory 512 --cpu-ids one
    run-enclave --eif-path {}/none --memory 512 --cpu-ids 1 two
    run-enclave --eif-path {}/none --memory 512 --cpu-count two
    run-enclave --eif-path {}/none --memory 512 --cpu-count -1
    run-enclave --eif-path {}/none --memory 512 --cpu-count 4294967296
    run-enclave --eif-path {}/none --memory 1GB --cpu-count 2
    run-enclave --eif-path {}/none --memory 1k --cpu-count 2
    run-enclave --eif-path {}/none --memory 1.5g --cpu-count 2
    run-enclave --eif-path {}/none --memory +512 --cpu-count 2
    run-enclave --eif-path {}/none --memory 99999999999999999999 --cpu-count 2
    run-enclave --eif-path {}/none --memory 512 --cpu-count 2 --enclave-cid 1
    run-enclave --eif-path {}/none --memory 512 --cpu-count 2 --enclave-cid 2
    run-enclave --eif-path {}/none --memory 512 --cpu-count 2 --enclave-cid 3
    run-enclave --eif-path {}/none --memory 512 --cpu-count 2 --enclave-cid 4294967295
    run-enclave --eif-path {}/none --memory 512 --cpu-count 2 --enclave-cid 4294967296
    run-enclave --eif-path {}/none --memory 512 --cpu-count 2 --enclave-cid x
    run-enclave --config {}/none
    run-enclave --config {}/none --attach-console
    run-enclave --config {}/none --debug-mode
    run-enclave --config {}/none --memory 512
    run-enclave --config {}/none --cpu-count 2
    run-enclave --config {}/text
    run-enclave --config {}/empty.json
    run-enclave --config {}/no-cpus.json
    run-enclave --config {}/both-cpus.json
    run-enclave --config {}/no-memory.json
    run-enclave --config {}/text-memory.json
    terminate-enclave
    terminate-enclave --all --enclave-id x
    terminate-enclave --all --enclave-name x
    terminate-enclave --enclave-id x --enclave-name x
    describe-enclaves x
    console
    console --disconnect-timeout 5
    console --enclave-id x --enclave-name x
    console --enclave-id i-1-enc1 --disconnect-timeout soon
    build-enclave
    build-enclave --docker-uri x
    build-enclave --output-file x
    build-enclave --docker-uri x --output-file x --signing-certificate {}/cert.pem
    build-enclave --docker-uri x --output-file x --private-key {}/key.pem
    describe-eif
    describe-eif --eif-path {}/none
    describe-eif --eif-path {}
    describe-eif --eif-path {}/text
    describe-eif --eif-path {}/nothing
    pcr
    pcr --input {}/none
    pcr --input {}
    pcr --input {}/text --signing-certificate {}/cert.pem
    pcr --signing-certificate {}/none
    pcr --signing-certificate {}/text
    pcr --signing-certificate {}/key.pem
    explain
    sign-eif
    sign-eif --signing-certificate {}/cert.pem --private-key {}/key.pem
    sign-eif --eif-path {}/text
    sign-eif --eif-path {}/text --signing-certificate {}/cert.pem
    sign-eif --eif-path {}/text --private-key {}/key.pem
    sign-eif --eif-path {}/text --signing-certificate {}/cert.pem --private-key {}/key.pem
    sign-eif --eif-path {}/none --signing-certificate {}/cert.pem --private-key {}/key.pem
    sign-eif --eif-path {}/text --signing-certificate {}/none --private-key {}/key.pem
    sign-eif --eif-path {}/text --signing-certificate {}/cert.pem --private-key {}/none
    sign-eif --eif-path {}/text --signing-certificate {}/text --private-key {}/key.pem
";

/// Certificates of another key, and every kind of wrong file that [`FAILING`] names.
fn wrong_files(folder: &Path) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key);
    let files = [
        ("cert.pem", certificate.unwrap().pem()),
        ("key.pem", key.serialize_pem()),
        ("nothing", String::new()),
        ("text", "no image at all".to_owned()),
        ("empty.json", "{}".to_owned()),
        (
            "no-cpus.json",
            r#"{"eif_path":"x","memory_mib":512}"#.to_owned(),
        ),
        (
            "both-cpus.json",
            r#"{"eif_path":"x","memory_mib":512,"cpu_count":2,"cpu_ids":[1]}"#.to_owned(),
        ),
        (
            "no-memory.json",
            r#"{"eif_path":"x","cpu_count":2}"#.to_owned(),
        ),
        (
            "text-memory.json",
            r#"{"eif_path":"x","memory_mib":"512","cpu_count":2}"#.to_owned(),
        ),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
}

/// What `docs/nitro-cli-differences.md` lists is not among them.
#[test]
fn what_fails_exits_as_nitro_cli_does() {
    let case = Case::generate(0);
    let folder = case.folder.path();
    wrong_files(folder);
    let lines: Vec<_> = FAILING
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    assert!(lines.len() > 60);
    for line in lines {
        let line = line.replace("{}", folder.to_str().unwrap());
        let [theirs, ours] = [nitro_cli(&case), enclos()].map(|mut command| {
            let command = command
                .args(line.split(' '))
                .env("NITRO_CLI_SOCKETS_PATH", folder);
            let output = command.env("ENCLOS_RUN_DIR", folder).output().unwrap();
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        });
        assert_eq!(ours.0, theirs.0, "{line}\n{}\n{}", ours.1, theirs.1);
        assert!(!ours.1.is_empty(), "{line}");
    }
}
