//! `up`, `down`, `status` and `doctor` where daemons are missing or do not start.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;

use std::os::unix::fs::PermissionsExt as _;

use daemon::{Daemon, Done, run_copy};
use enclos_api::control::{Reply, Success};
use enclos_api::gateway;

/// A directory with a copy of the binary and nothing beside it but these scripts.
fn run(daemon: &Daemon, scripts: &[(&str, &str)], args: &[&str]) -> Done {
    for (name, script) in scripts {
        let program = daemon.file(name, format!("#!/bin/sh\n{script}\n").as_bytes());
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    run_copy(daemon, args)
}

#[test]
fn a_daemon_that_is_not_installed_is_named() {
    let done = run(&Daemon::none(), &[], &["up"]);
    assert_eq!(done.status, 1);
    assert!(
        done.stderr
            .contains("error: cannot start enclos-hypervisor"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr
            .contains("hint: put Enclos's programs into one directory"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_daemon_that_ends_at_once_is_quoted_and_leaves_no_pid_file() {
    let daemon = Daemon::none();
    let done = run(
        &daemon,
        &[("enclos-hypervisor", "echo qemu is too old >&2; exit 3")],
        &["up"],
    );
    assert_eq!(done.status, 1);
    assert!(
        done.stderr
            .contains("enclos-hypervisor ended at once (exit status: 3)"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr.contains("because: it said: qemu is too old"),
        "{}",
        done.stderr
    );
    assert!(!std::path::Path::new(&daemon.path("hypervisor.pid")).exists());
    assert_eq!(run(&daemon, &[], &["down"]).status, 0);
}

#[test]
fn the_kms_gets_the_measurement_policies_wherever_up_was_called() {
    let host = Reply::Ok(Success::Host(Box::new(daemon::host())));
    let daemon = Daemon::hypervisor(vec![host.clone(), host]);
    let told = daemon.path("told");
    let script = format!("printf '%s\\n' \"$@\" > {told}; echo started >&2; exit 1");
    let up = ["up", "--kms", "--kms-listen", "127.0.0.1:1"];
    let policies = ["--kms-measurement-policies", "tests/snapshots"];
    let up = [up.as_slice(), &policies].concat();
    let done = run(&daemon, &[("enclos-kms", &script)], &up);
    assert!(done.stderr.contains("it said: started"), "{}", done.stderr);
    let told = std::fs::read_to_string(told).unwrap();
    let wanted = std::fs::canonicalize("tests/snapshots").unwrap();
    let wanted = format!("--measurement-policies\n{}\n", wanted.display());
    assert!(told.ends_with(&wanted), "{told}");

    let none = Daemon::none();
    let policies = ["--kms-measurement-policies", "nowhere"];
    let done = run(&none, &[], &[["up", "--kms"], policies].concat());
    assert_eq!(done.status, 1);
    assert!(
        done.stderr.contains("cannot find nowhere"),
        "before anything is started: {}",
        done.stderr
    );
}

/// Fedora's users have this umask, and daemons refuse directories that a group can write to.
#[test]
fn directories_are_their_users_alone_whatever_the_umask() {
    let daemon = Daemon::none();
    let state = daemon.path("state");
    let enclos = env!("CARGO_BIN_EXE_enclos");
    let down = std::process::Command::new("sh")
        .args(["-c", "umask 0002; exec \"$0\" down", enclos])
        .env("ENCLOS_RUN_DIR", daemon.path("run"))
        .env("ENCLOS_STATE_DIR", &state)
        .output()
        .unwrap();
    assert!(down.status.success(), "{down:?}");
    for made in [daemon.path("run"), format!("{state}/log"), state] {
        let mode = std::fs::metadata(&made).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{made}");
    }
}

#[test]
fn status_tells_what_is_down_and_what_is_up() {
    let none = run(&Daemon::none(), &[], &["status"]);
    assert_eq!(none.status, 1);
    assert_eq!(
        none.stdout
            .lines()
            .filter(|line| line.contains(" down "))
            .count(),
        3,
        "{}",
        none.stdout
    );

    let host = Reply::Ok(Success::Enclaves(vec![daemon::enclave()]));
    let daemon = Daemon::hypervisor(vec![host.clone(), host.clone(), host]);
    let _gateway =
        daemon.with_gateway(vec![gateway::Reply::Ok(vec![]), gateway::Reply::Ok(vec![])]);
    let up = run(&daemon, &[], &["status"]);
    assert_eq!(up.status, 0, "{}{}", up.stdout, up.stderr);
    assert_eq!(
        up.stdout.matches("up, not started by `enclos up`").count(),
        2,
        "{}",
        up.stdout
    );
    assert!(up.stdout.contains(
        "enclave     hello (i-1234567890abcdef0-enc191cceb4289903f), CID 16, 2 vCPUs, 512 MiB"
    ));
}

#[test]
fn doctor_says_what_is_missing_and_what_to_do() {
    let done = run(&Daemon::none(), &[], &["doctor"]);
    assert_eq!(done.status, 1);
    assert!(
        done.stdout
            .contains("✗ programs     not found: enclos-hypervisor"),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains("→ "), "{}", done.stdout);
    let findings = run(&Daemon::none(), &[], &["doctor", "--json"]).json();
    let guest = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["what"] == "guest")
        .unwrap()
        .clone();
    assert_eq!(
        (guest["level"].as_str(), guest["todo"].as_str().is_some()),
        (Some("bad"), true)
    );
}

/// The running hypervisor may have been started with another allocator file than the usual one.
#[test]
fn doctor_says_what_the_running_hypervisor_has_for_enclaves() {
    let host = Reply::Ok(Success::Host(Box::new(daemon::host())));
    let daemon = Daemon::hypervisor(vec![host.clone(), host]);
    let done = run(&daemon, &[], &["doctor"]);
    let expected = "set aside    1024 MiB (1024 free), CPUs [0, 1] of the hypervisor that runs";
    assert!(done.stdout.contains(expected), "{}", done.stdout);
    let none = run(&Daemon::none(), &[], &["doctor"]);
    assert!(!none.stdout.contains("that runs"), "{}", none.stdout);
}

#[test]
fn an_enclaves_log_is_found_by_name_and_followed_to_its_end() {
    use std::io::Write as _;
    let daemon = Daemon::none();
    std::fs::create_dir_all(daemon.path("state/log/enclaves")).unwrap();
    let first = "info: app (i-0-enc1): started for user 0, 1 vCPUs, 64 MiB\n";
    daemon.file("state/log/hypervisor.log", b"info: serving\n");
    daemon.file("state/log/enclaves/i-0-enc1.log", first.as_bytes());
    daemon.file(
        "state/log/enclaves/i-0-enc2.log",
        b"info: app_1 (i-0-enc2): started\nwarn: a\x1b[2Jb",
    );
    let logs = |args: &[&str]| daemon::run(&daemon, &[&["logs"], args].concat());
    assert_eq!(logs(&[]).stdout, "info: serving\n");
    assert_eq!(logs(&["app"]).stdout, first);
    assert_eq!(logs(&["i-0-enc1"]).stdout, first);
    let steered = logs(&["app_1"]).stdout;
    assert!(steered.ends_with("warn: a\\u{1b}[2Jb\n"), "{steered}");
    let missing = logs(&["other"]);
    assert_eq!(missing.status, 1);
    assert!(
        missing.stderr.contains("no log of an enclave `other`"),
        "{}",
        missing.stderr
    );
    let path = daemon.path("state/log/enclaves/i-0-enc1.log");
    let writer = std::thread::spawn(move || {
        let mut log = std::fs::File::options().append(true).open(path).unwrap();
        for part in [
            "warn: half ",
            "a line\ninfo: en",
            "ded: terminated by request\n",
        ] {
            std::thread::sleep(std::time::Duration::from_millis(50));
            log.write_all(part.as_bytes()).unwrap();
        }
    });
    let followed = logs(&["app", "-f"]);
    writer.join().unwrap();
    assert_eq!(followed.status, 0, "{}", followed.stderr);
    assert_eq!(
        followed.stdout,
        format!("{first}warn: half a line\ninfo: ended: terminated by request\n")
    );
}
