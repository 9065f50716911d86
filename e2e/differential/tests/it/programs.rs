//! Against AWS's programs, which `cargo xtask test` installs once and names in the environment.

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

/// `eif_build` takes the name of an image for its version too, and says `null` for what Docker knows of it.
#[test]
fn eif_build_writes_the_same_bytes() {
    let cases = (0..30).map(Case::generate);
    for mut case in cases.chain((0..15).map(Case::for_aarch64)) {
        case.signing = None;
        // An argument cannot be empty for it, nor start with a dash.
        case.cmdline = format!("console=ttyS0 {}", case.cmdline.trim());
        case.cmdline.truncate(2047);
        let custom = case.folder.path().join("custom.json");
        fs::write(&custom, case.metadata["CustomMetadata"].to_string()).unwrap();
        let path = case.folder.path().join("built.eif");
        let mut command = Command::new(program("ENCLOS_PEER_EIF_BUILD"));
        command
            .arg("--kernel")
            .arg(case.kernel())
            .arg("--cmdline")
            .arg(&case.cmdline);
        for ramdisk in &case.ramdisks {
            command.arg("--ramdisk").arg(ramdisk);
        }
        command
            .arg("--metadata")
            .arg(&custom)
            .arg("--output")
            .arg(&path);
        command.args([
            "--name",
            "image",
            "--build-time",
            "2024-01-01T00:00:00+00:00",
        ]);
        command.args(["--build-tool", "tool", "--build-tool-version", "1"]);
        command.args(["--img-os", "Linux", "--img-kernel", "6.12"]);
        let arch = if case.is_aarch64 { "aarch64" } else { "x86_64" };
        command.args(["--arch", arch]);
        let printed = String::from_utf8(run(&mut command).stdout).unwrap();
        case.metadata["ImageName"] = "image".into();
        case.metadata["ImageVersion"] = "image".into();
        case.metadata["DockerInfo"] = serde_json::Value::Null;
        case.metadata["BuildMetadata"] = serde_json::json!({
            "BuildTime": "2024-01-01T00:00:00+00:00", "BuildTool": "tool", "BuildToolVersion": "1",
            "OperatingSystem": "Linux", "KernelVersion": "6.12",
        });
        let (_, ours, measurements) = case.ours();
        assert!(
            ours == fs::read(&path).unwrap(),
            "case {}: the files differ",
            case.number
        );
        for (name, value) in named(&measurements) {
            assert!(
                printed.contains(&value),
                "case {}: {name} {value} is not in {printed}",
                case.number
            );
        }
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
