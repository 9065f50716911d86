//! `plan` and `diff` on images with a small kernel and an application of two files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
mod inputs;

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use daemon::run_with;
use inputs::{Desk, Layer};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

#[test]
fn a_plan_says_what_the_build_will_say() {
    let desk = Desk::new();
    let planned = desk.with_inputs("plan", &["--json"]).json();
    let output = desk.0.path("app.eif");
    let built = desk.with_inputs("build", &["--output", &output]);
    assert_eq!(planned["Measurements"], built.json()["Measurements"]);
    assert_eq!(planned["Bytes"], std::fs::metadata(&output).unwrap().len());
    assert_eq!(
        planned["Configuration"]["ingress"],
        serde_json::json!([5000])
    );
    let condition = &planned["Condition"]["StringEqualsIgnoreCase"];
    for pcr in ["PCR0", "PCR1", "PCR2"] {
        let key = format!("kms:RecipientAttestation:{pcr}");
        assert_eq!(condition[key.as_str()], planned["Measurements"][pcr]);
        // What `build` says on stderr can be pasted as well.
        assert!(
            built.stderr.contains(&format!("\"{key}\"")),
            "{}",
            built.stderr
        );
    }
    assert_eq!(condition.as_object().unwrap().len(), 3);
}

#[test]
fn a_plan_for_people_ends_with_the_condition_to_paste() {
    let desk = Desk::new();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let pem = desk.0.file("certificate.pem", certificate.pem().as_bytes());
    let text = desk
        .with_inputs("plan", &["--signing-certificate", &pem])
        .stdout;
    let pcr8 = desk.run(&["pcr", "--signing-certificate", &pem]).json()["PCR8"].clone();
    let (registers, condition) = text.split_once("Condition for a KMS key policy").unwrap();
    assert!(
        registers.contains(&format!("PCR8  {}\n", pcr8.as_str().unwrap())),
        "{registers}"
    );
    let json: Value = serde_json::from_str(&condition[condition.find('{').unwrap()..]).unwrap();
    assert_eq!(
        json["StringEqualsIgnoreCase"]["kms:RecipientAttestation:PCR8"],
        pcr8
    );
    assert!(!std::path::Path::new(&desk.0.path("out.eif")).exists());
}

#[test]
fn a_difference_names_inputs_and_registers() {
    let desk = Desk::new();
    let first = desk.build("first.eif");
    desk.0.file("root/bin/app", b"the Application");
    desk.0.file(
        "enclos.toml",
        b"[app]\ncommand = [\"/bin/app\", \"-v\"]\n[ingress]\nports = [5000]\n",
    );
    let second = desk.build("second.eif");
    let text = desk.run(&["diff", &first, &second]).stdout;
    let shown = text.split_once("\nconfiguration").unwrap().1;
    insta::assert_snapshot!(shown.split_once("\nFor the second").unwrap().0, @r#"
     (moves PCR0, PCR2)
      + /process/argv/1
          + "-v"

    application (moves PCR0, PCR2)
      ~ /rootfs/bin/app
          - 15 bytes, SHA-256 59b33147eed775afbd220ad5c1d10dfd17c401cb664c3c05a2e877c208d45bfb, mode 0644, owner 0:0, time 0
          + 15 bytes, SHA-256 5979eeac22e302916480f73ec5e4beafdc4ae9a5db4c01d4c40157bc4e36615d, mode 0644, owner 0:0, time 0
    "#);
    let json = desk.run(&["diff", &first, &second, "--json"]).json();
    let moved = json["registers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["moved"] == true);
    assert_eq!(
        moved
            .map(|r| r["register"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["PCR0", "PCR2"]
    );
    assert_eq!(json["changes"][0]["input"], "configuration");
    assert_eq!(json["changes"][1]["name"], "/rootfs/bin/app");
    let condition = &json["condition_for_second"]["StringEqualsIgnoreCase"];
    assert_eq!(
        condition["kms:RecipientAttestation:PCR0"],
        json["registers"][0]["second"]
    );
}

#[test]
fn equal_images_are_said_to_be_equal() {
    let desk = Desk::new();
    let (first, second) = (desk.build("first.eif"), desk.build("second.eif"));
    let text = desk.run(&["diff", &first, &second]).stdout;
    assert!(text.contains("made of the same inputs"), "{text}");
}

#[test]
fn what_is_no_image_is_not_compared() {
    let desk = Desk::new();
    let first = desk.build("first.eif");
    let other = desk.0.path("root/bin/app");
    let done = run_with(&desk.0, &["diff", &first, &other], &[]);
    assert_eq!((done.status, done.stdout.as_str()), (1, ""));
    assert!(
        done.stderr.contains("the second image cannot be read"),
        "{}",
        done.stderr
    );
}

/// The registers of an image from finished parts are those of `pcr` over the same bytes.
#[test]
fn finished_parts_are_put_together() {
    let desk = Desk::new();
    let kernel = std::fs::read(desk.0.path("cache/kernel/6.12.0-test/vmlinuz")).unwrap();
    let parts = [
        kernel.as_slice(),
        b"quiet",
        b"070701 first",
        b"070701 second",
        b"070701 third",
    ];
    let path = |index: usize| desk.0.file(&format!("part{index}"), parts[index]);
    let (kernel, output) = (path(0), desk.0.path("parts.eif"));
    let ramdisks = [2, 3, 4].map(path);
    let mut args = vec![
        "eif",
        "assemble",
        "--kernel",
        &kernel,
        "--cmdline",
        "quiet",
        "--output",
        &output,
    ];
    args.extend(ramdisks.iter().flat_map(|ramdisk| ["--ramdisk", ramdisk]));
    let built = desk.run(&args).json();
    let described = desk.run(&["describe-eif", "--eif-path", &output]).json();
    assert_eq!(built["Measurements"], described["Measurements"]);
    for (register, parts) in [
        ("PCR0", &parts[..]),
        ("PCR1", &parts[..3]),
        ("PCR2", &parts[3..]),
    ] {
        let input = desk.0.file("input", &parts.concat());
        assert_eq!(
            desk.run(&["pcr", "--input", &input]).json()["PCR"],
            built["Measurements"][register],
            "{register}"
        );
    }
    assert_eq!(described["Metadata"]["KernelVersion"], "6.12.0-test");
    let bad = desk.0.file("bad", b"no archive");
    let refused = desk.try_run(
        &[
            "eif",
            "assemble",
            "--kernel",
            &kernel,
            "--cmdline",
            "",
            "--ramdisk",
            &bad,
            "-o",
            &output,
        ],
        &[],
    );
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.contains("expected a newc cpio archive"),
        "{}",
        refused.stderr
    );
}

/// A program as far as its processor: 62 is x86-64, 183 aarch64.
fn program(machine: u8) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = machine;
    elf
}

#[test]
fn an_arm64_kernel_makes_an_image_for_aarch64() {
    let desk = Desk::new();
    for folder in ["arm/modules", "arm-guest"] {
        std::fs::create_dir_all(desk.0.path(folder)).unwrap();
    }
    let built_in = std::fs::read(
        desk.0
            .path("cache/kernel/6.12.0-test/modules/modules.builtin"),
    );
    desk.0
        .file("arm/modules/modules.builtin", &built_in.unwrap());
    desk.0.file("arm/vmlinuz", &inputs::arm64_kernel());
    for name in ["arm-guest/enclos-init", "arm-guest/enclos-agent"] {
        desk.0.file(name, &program(183));
    }
    let (root, config) = (desk.0.path("root"), desk.0.path("enclos.toml"));
    let (kernel, guest) = (desk.0.path("arm"), desk.0.path("arm-guest"));
    let output = desk.0.path("arm.eif");
    let args = [
        "build", &root, "--config", &config, "--kernel", &kernel, "--guest", &guest, "--output",
        &output,
    ];
    let built = desk.run(&args).json();
    let described = desk.run(&["describe-eif", "--eif-path", &output]);
    assert!(
        described.stderr.contains("for aarch64"),
        "{}",
        described.stderr
    );
    let described = described.json();
    assert_eq!(described["Measurements"], built["Measurements"]);
    assert_eq!(described["CheckCRC"], true);
    assert_eq!(std::fs::read(&output).unwrap()[6..8], [0, 1]);

    desk.0.file("arm-guest/enclos-agent", &program(62));
    let refused = desk.try_run(&args, &[]);
    assert_ne!(refused.status, 0);
    assert!(
        refused
            .stderr
            .contains("enclos-agent is for another processor"),
        "{}",
        refused.stderr
    );
}

/// An OCI layout with an image for this processor that has one file.
fn layout(desk: &Desk, architecture: &str) -> String {
    let layer = Layer::default().file("app", "app").finish();
    desk.layout("layout", architecture, &[layer])
}

/// As with nitro-cli, which has no option for it either.
#[test]
fn the_kernel_follows_the_container_image() {
    let desk = Desk::new();
    let source = layout(&desk, "arm64");
    let output = desk.0.path("arm.eif");
    let args = [
        "build-enclave",
        "--docker-uri",
        &source,
        "--output-file",
        &output,
    ];
    let refused = desk.try_run(&args, &[]);
    assert_eq!(refused.status, 48, "{}", refused.stderr);
    for text in ["found linux/arm64", "kernel fetch --arch aarch64"] {
        assert!(refused.stderr.contains(text), "{}", refused.stderr);
    }

    let cache = desk.0.path("cache/kernel");
    std::fs::create_dir_all(format!("{cache}/6.12.0-arm64/modules")).unwrap();
    std::fs::create_dir_all(desk.0.path("guest/aarch64")).unwrap();
    let built_in = std::fs::read(format!("{cache}/6.12.0-test/modules/modules.builtin")).unwrap();
    desk.0.file(
        "cache/kernel/6.12.0-arm64/modules/modules.builtin",
        &built_in,
    );
    desk.0
        .file("cache/kernel/6.12.0-arm64/vmlinuz", &inputs::arm64_kernel());
    for name in ["guest/aarch64/enclos-init", "guest/aarch64/enclos-agent"] {
        desk.0.file(name, &program(183));
    }
    desk.run(&args);
    assert_eq!(std::fs::read(&output).unwrap()[6..8], [0, 1]);
    // An image for x86-64 has the same kernel as before.
    layout(&desk, "amd64");
    desk.run(&args);
    assert_eq!(std::fs::read(&output).unwrap()[6..8], [0, 0]);
}

/// The variable is neither of the image's nor in enclos.toml.
#[test]
fn a_wrong_source_date_epoch_is_told_as_what_it_is() {
    let desk = Desk::new();
    let (root, config) = (desk.0.path("root"), desk.0.path("enclos.toml"));
    let args = ["plan", &root, "--config", &config];
    for wrong in ["yesterday", "-1", "4294967296", ""] {
        let done = desk.try_run(&args, &[("SOURCE_DATE_EPOCH", wrong)]);
        assert_eq!(done.status, 1, "{wrong}");
        let text = format!("SOURCE_DATE_EPOCH is {wrong:?}");
        assert!(done.stderr.contains(&text), "{}", done.stderr);
        assert!(done.stderr.contains("or unset it"), "{}", done.stderr);
    }
}

/// Runs `enclos` after a shell has done something to itself.
fn run_after(desk: &Desk, preparation: &str, args: &[&str]) -> Output {
    Command::new("/bin/sh")
        .args(["-c", &format!("{preparation}; exec \"$@\""), "sh"])
        .arg(env!("CARGO_BIN_EXE_enclos"))
        .args(args)
        .env("ENCLOS_CACHE_DIR", desk.0.path("cache"))
        .env("ENCLOS_GUEST_DIR", desk.0.path("guest"))
        .output()
        .unwrap()
}

#[test]
fn an_image_has_the_permissions_of_any_new_file() {
    let desk = Desk::new();
    let (root, config) = (desk.0.path("root"), desk.0.path("enclos.toml"));
    for (umask, expected) in [("0022", 0o644), ("0027", 0o640), ("0077", 0o600)] {
        let output = desk.0.path(umask);
        let args = ["build", &root, "--config", &config, "--output", &output];
        let built = run_after(&desk, &format!("umask {umask}"), &args);
        assert!(built.status.success(), "{built:?}");
        let mode = std::fs::metadata(&output).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, expected, "umask {umask}");
    }
}

/// No file can be longer than 64 KiB: neither the image's source nor the kernel is to blame for that.
#[test]
fn a_disk_without_room_is_told_as_that() {
    let desk = Desk::new();
    let big = "x".repeat(1 << 20);
    let layout = desk.layout(
        "layout",
        "amd64",
        &[Layer::default().file("app", &big).finish()],
    );
    desk.0.file("root/big", big.as_bytes());
    let (root, config) = (desk.0.path("root"), desk.0.path("enclos.toml"));
    for (source, told) in [
        (layout, "cannot use a temporary file"),
        (root, "cannot write the image"),
    ] {
        let output = desk.0.path("app.eif");
        let args = ["build", &source, "--config", &config, "--output", &output];
        let built = run_after(&desk, "trap '' XFSZ; ulimit -f 128", &args);
        let stderr = String::from_utf8(built.stderr).unwrap();
        assert_eq!(built.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(told), "{stderr}");
        assert!(stderr.contains("File too large"), "{stderr}");
        assert!(!std::path::Path::new(&output).exists());
    }
}

/// The most memory that a process has had so far (KiB), as long as it runs.
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().trim_end_matches(" kB").parse().ok()
}

/// So many files that what their names say is in a temporary database at the end.
#[test]
fn many_files_take_little_memory() {
    let desk = Desk::new();
    let (archive, config) = (desk.0.path("many.tar"), desk.0.path("enclos.toml"));
    let file = std::io::BufWriter::new(std::fs::File::create(&archive).unwrap());
    let mut tar = tar::Builder::new(file);
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    for number in 0..400_000 {
        let path = format!("srv/package-{}/lib/file-{number}", number % 1000);
        tar.append_data(&mut header, path, std::io::empty())
            .unwrap();
    }
    tar.into_inner().unwrap().into_inner().unwrap();
    let mut planning = Command::new(env!("CARGO_BIN_EXE_enclos"))
        .args(["plan", &archive, "--config", &config])
        .env("ENCLOS_CACHE_DIR", desk.0.path("cache"))
        .env("ENCLOS_GUEST_DIR", desk.0.path("guest"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut highest = 0;
    let status = loop {
        highest = peak(planning.id()).map_or(highest, |peak| highest.max(peak));
        if let Some(status) = planning.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success());
    assert!((1..64 << 10).contains(&highest), "{highest} KiB");
}
