//! The real binary against a daemon that answers by script: JSON, words on stderr, exit statuses.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;

use daemon::{Daemon, enclave, run, run_as_nitro_cli};
use enclos_api::control::{Exit, Failure, Reply, Request, Selector, Success};
use enclos_api::gateway;
use serde_json::json;

const PCR: &str = "c8eaa4091a629e01ccfe00315d88e60da6aa134421708e1982c19c78fd39ea0977c22b9aa9dc76d7b7466bf463c81420";

fn refuse(code: u8, message: &str) -> Reply {
    Reply::Error(Failure {
        code,
        message: message.to_owned(),
    })
}

fn started() -> Reply {
    Reply::Ok(Success::Started {
        enclave: Box::new(enclave()),
        warnings: vec!["CPUs are shared".into()],
    })
}

#[test]
fn run_enclave_prints_awss_json_and_sends_the_image_itself() {
    let daemon = Daemon::hypervisor(vec![started()]);
    let image = daemon.file("hello.eif", b"the image's bytes");
    let done = run(
        &daemon,
        &[
            "run-enclave",
            "--cpu-count",
            "2",
            "--memory",
            "1G",
            "--eif-path",
            &image,
        ],
    );
    assert_eq!(done.status, 0, "{}", done.stderr);
    insta::assert_snapshot!(done.stdout, @r#"
    {
      "EnclaveName": "hello",
      "EnclaveID": "i-1234567890abcdef0-enc191cceb4289903f",
      "ProcessID": 4711,
      "EnclaveCID": 16,
      "NumberOfCPUs": 2,
      "CPUIDs": [
        0,
        1
      ],
      "MemoryMiB": 512
    }
    "#);
    insta::assert_snapshot!(done.stderr, @r"
    Start allocating memory...
    warning: CPUs are shared
    Started enclave with enclave-cid: 16, memory: 512 MiB, cpu-ids: [0, 1]
    ");
    let heard = daemon.heard();
    assert_eq!(heard[0].image.as_deref(), Some(&b"the image's bytes"[..]));
    let Request::Run(request) = &heard[0].request else {
        panic!("{heard:?}")
    };
    assert_eq!(
        (
            request.name.as_str(),
            request.memory_mib,
            request.cid,
            request.debug
        ),
        ("hello", 1024, None, false)
    );
}

#[test]
fn describe_enclaves_is_an_array_in_awss_order() {
    let daemon = Daemon::hypervisor(vec![Reply::Ok(Success::Enclaves(vec![enclave()]))]);
    let done = run(&daemon, &["describe-enclaves"]);
    insta::assert_snapshot!(done.stdout.replace(PCR, "<pcr>"), @r#"
    [
      {
        "EnclaveName": "hello",
        "EnclaveID": "i-1234567890abcdef0-enc191cceb4289903f",
        "ProcessID": 4711,
        "EnclaveCID": 16,
        "NumberOfCPUs": 2,
        "CPUIDs": [
          0,
          1
        ],
        "MemoryMiB": 512,
        "State": "RUNNING",
        "Flags": "NONE",
        "Measurements": {
          "HashAlgorithm": "Sha384 { ... }",
          "PCR0": "<pcr>",
          "PCR1": "<pcr>",
          "PCR2": "<pcr>"
        }
      }
    ]
    "#);
}

#[test]
fn a_debug_enclave_is_described_with_the_zeros_that_it_attests() {
    let mut debug = enclave();
    debug.debug = true;
    debug.measurements.pcr8 = Some(PCR.to_owned());
    let daemon = Daemon::hypervisor(vec![Reply::Ok(Success::Enclaves(vec![debug]))]);
    let done = run(&daemon, &["describe-enclaves"]);
    assert!(
        !done.stdout.contains(PCR) && done.stdout.contains("DEBUG_MODE"),
        "{}",
        done.stdout
    );
    assert_eq!(done.stdout.matches(&"0".repeat(96)).count(), 4);
}

#[test]
fn metadata_is_flattened_with_awss_keys_first() {
    let daemon = Daemon::hypervisor(vec![Reply::Ok(Success::Enclaves(vec![enclave()]))]);
    let done = run(&daemon, &["describe-enclaves", "--metadata"]);
    let tail = done
        .stdout
        .split("\"ImageName\"")
        .nth(1)
        .unwrap()
        .to_owned();
    insta::assert_snapshot!(tail, @r#"
    : "hello",
        "ImageVersion": "1.0",
        "Metadata": {
          "BuildTime": "2024-01-01T00:00:00+00:00",
          "BuildTool": "enclos",
          "BuildToolVersion": "0.1.0",
          "OperatingSystem": "Linux",
          "KernelVersion": "6.12",
          "DockerInfo": {},
          "team": "payments"
        }
      }
    ]
    "#);
}

#[test]
fn terminate_enclave_answers_with_one_object_and_all_with_an_array() {
    let gone = || {
        Reply::Ok(Success::Terminated {
            id: enclave().id,
            name: enclave().name,
        })
    };
    let daemon = Daemon::hypervisor(vec![
        gone(),
        Reply::Ok(Success::Enclaves(vec![enclave()])),
        gone(),
    ]);
    let done = run(&daemon, &["terminate-enclave", "--enclave-name", "hello"]);
    let object = json!({"EnclaveName": "hello", "EnclaveID": enclave().id, "Terminated": true});
    assert_eq!(done.json(), object);
    assert_eq!(
        done.stderr,
        format!("Successfully terminated enclave {}.\n", enclave().id)
    );
    assert_eq!(
        run(&daemon, &["terminate-enclave", "--all", "--grace", "0"]).json(),
        json!([object])
    );
    let asked = daemon.heard();
    assert_eq!(
        asked[0].request,
        Request::Terminate {
            enclave: Selector::Name("hello".into()),
            grace_s: 10,
        }
    );
    assert_eq!(
        asked[2].request,
        Request::Terminate {
            enclave: Selector::Id(enclave().id),
            grace_s: 0,
        }
    );
}

#[test]
fn one_enclave_that_cannot_be_stopped_does_not_hide_the_others() {
    let mut other = enclave();
    other.id = "i-1234567890abcdef0-enc2".to_owned();
    let replies = vec![
        Reply::Ok(Success::Enclaves(vec![other, enclave()])),
        refuse(38, "it belongs to another user"),
        Reply::Ok(Success::Terminated {
            id: enclave().id,
            name: enclave().name,
        }),
    ];
    let done = run(
        &Daemon::hypervisor(replies),
        &["terminate-enclave", "--all"],
    );
    assert_eq!(
        (done.status, done.json().as_array().map(Vec::len)),
        (38, Some(1))
    );
    assert!(
        done.stderr.contains("cannot stop i-1234567890abcdef0-enc2"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_refusal_exits_with_its_number_in_awss_layout() {
    let daemon = Daemon::hypervisor(vec![refuse(
        27,
        "4096 MiB were asked for, 1200 MiB are free",
    )]);
    let image = daemon.file("x.eif", b"x");
    let done = run_as_nitro_cli(
        &daemon,
        &[
            "run-enclave",
            "--cpu-ids",
            "1",
            "2",
            "--memory",
            "4096",
            "--eif-path",
            &image,
        ],
    );
    assert_eq!((done.status, done.stdout.as_str()), (27, ""));
    insta::assert_snapshot!(done.stderr, @r"
    Start allocating memory...
    [ E27 ] 4096 MiB were asked for, 1200 MiB are free
    For details: nitro-cli explain --error-code E27
    ");
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_its_socket_and_its_cure() {
    let daemon = Daemon::none();
    let done = run(&daemon, &["describe-enclaves"]);
    assert_eq!(done.status, 39);
    insta::assert_snapshot!(daemon.without_paths(&done.stderr), @r"
    [ E39 ] cannot reach enclos-hypervisor at <run>/hypervisor.sock
      because: No such file or directory (os error 2)
      hint: start it with `enclos up`; if enclos-hypervisor runs already, set ENCLOS_RUN_DIR to its run directory
    For details: enclos explain --error-code E39
    ");
}

#[test]
fn a_daemon_that_hangs_up_or_speaks_otherwise_is_told_apart() {
    let hung_up = run(&Daemon::hypervisor(vec![]), &["describe-enclaves"]);
    assert_eq!(hung_up.status, 38, "{}", hung_up.stderr);
    let other = run(
        &Daemon::hypervisor(vec![Reply::Ok(Success::Streaming)]),
        &["describe-enclaves"],
    );
    assert_eq!(other.status, 38);
    assert!(
        other.stderr.contains("answered something else"),
        "{}",
        other.stderr
    );
    let garbage = run(&Daemon::garbage(), &["describe-enclaves"]);
    assert_eq!(garbage.status, 17, "{}", garbage.stderr);
}

#[test]
fn a_missing_image_is_e19_before_anyone_is_asked() {
    let daemon = Daemon::none();
    let done = run(
        &daemon,
        &[
            "run-enclave",
            "--cpu-count",
            "1",
            "--memory",
            "64",
            "--eif-path",
            "/no/such.eif",
        ],
    );
    assert_eq!(done.status, 19);
    assert!(
        done.stderr
            .starts_with("[ E19 ] cannot open /no/such.eif\n  because: No such file"),
        "{}",
        done.stderr
    );
}

#[test]
fn ports_are_published_through_the_gateway() {
    let daemon = Daemon::hypervisor(vec![started()]);
    let listen = "127.0.0.1:8080".parse().unwrap();
    let entry = gateway::Publication {
        enclave_id: enclave().id,
        listen,
        guest_port: 5000,
    };
    let gateway = daemon.with_gateway(vec![gateway::Reply::Ok(vec![entry.clone()])]);
    let image = daemon.file("hello.eif", b"x");
    let done = run(
        &daemon,
        &[
            "run-enclave",
            "--cpu-count",
            "2",
            "--memory",
            "512",
            "--eif-path",
            &image,
            "--publish",
            "8080:5000",
        ],
    );
    assert_eq!(done.status, 0, "{}", done.stderr);
    assert!(
        done.stderr
            .contains("Published 127.0.0.1:8080 -> port 5000"),
        "{}",
        done.stderr
    );
    assert_eq!(gateway.heard(), [gateway::Request::Publish(entry)]);
}

#[test]
fn an_enclave_whose_port_is_taken_is_stopped_again() {
    let gone = Reply::Ok(Success::Terminated {
        id: enclave().id,
        name: enclave().name,
    });
    let daemon = Daemon::hypervisor(vec![started(), gone]);
    let refused = Failure {
        code: 11,
        message: "127.0.0.1:8080 is in use".to_owned(),
    };
    let _gateway = daemon.with_gateway(vec![gateway::Reply::Error(refused)]);
    let image = daemon.file("hello.eif", b"x");
    let done = run(
        &daemon,
        &[
            "run-enclave",
            "--cpu-count",
            "2",
            "--memory",
            "512",
            "--eif-path",
            &image,
            "--publish",
            "8080:5000",
        ],
    );
    assert_eq!((done.status, done.stdout.as_str()), (11, ""));
    assert!(
        done.stderr.contains("because: 127.0.0.1:8080 is in use"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr.contains("hint: the enclave was stopped again"),
        "{}",
        done.stderr
    );
    assert!(matches!(
        &daemon.heard()[1].request,
        Request::Terminate { .. }
    ));
}

#[test]
fn an_enclave_without_a_gateway_is_stopped_again_and_both_remedies_are_told() {
    let gone = Reply::Ok(Success::Terminated {
        id: enclave().id,
        name: enclave().name,
    });
    let daemon = Daemon::hypervisor(vec![started(), gone]);
    let image = daemon.file("hello.eif", b"x");
    let start = "run-enclave --cpu-count 2 --memory 512 --publish 8080:5000 --eif-path";
    let start: Vec<&str> = start.split(' ').chain([image.as_str()]).collect();
    let done = run(&daemon, &start);
    for hint in [
        "hint: start it with `enclos up`",
        "hint: the enclave was stopped again",
    ] {
        assert!(done.stderr.contains(hint), "{}", done.stderr);
    }
}

#[test]
fn the_console_is_copied_until_it_ends() {
    let describe = || Reply::Ok(Success::Enclaves(vec![enclave()]));
    let daemon = Daemon::hypervisor(vec![describe(), Reply::Ok(Success::Streaming)]);
    daemon.after_streaming(b"booting\nready\n");
    // A time that no clock counts to is no time.
    let console = format!(
        "console --enclave-name hello --disconnect-timeout {}",
        u64::MAX
    );
    let done = run(&daemon, &console.split(' ').collect::<Vec<_>>());
    assert_eq!(done.status, 0, "{}", done.stderr);
    assert_eq!(
        done.stdout,
        "Connecting to the console for enclave 16...\nSuccessfully connected to the console.\nbooting\nready\n"
    );
}

#[test]
fn the_console_of_a_production_enclave_is_e44() {
    let replies = vec![
        Reply::Ok(Success::Enclaves(vec![enclave()])),
        refuse(44, "hello does not run in debug mode"),
    ];
    let done = run(
        &Daemon::hypervisor(replies),
        &["console", "--enclave-id", &enclave().id],
    );
    assert_eq!(done.status, 44);
    let none = run(
        &Daemon::hypervisor(vec![Reply::Ok(Success::Enclaves(vec![]))]),
        &["console", "--enclave-name", "x"],
    );
    assert_eq!(none.status, 58);
}

#[test]
fn the_console_is_left_when_the_time_is_up() {
    let daemon = Daemon::hypervisor(vec![
        Reply::Ok(Success::Enclaves(vec![enclave()])),
        Reply::Ok(Success::Streaming),
    ]);
    daemon.keep_streaming();
    let begun = std::time::Instant::now();
    let done = run(
        &daemon,
        &[
            "console",
            "--enclave-name",
            "hello",
            "--disconnect-timeout",
            "1",
        ],
    );
    assert_eq!(done.status, 0, "{}", done.stderr);
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
}

#[test]
fn wait_tells_how_an_enclave_ended() {
    let exit = Exit {
        id: enclave().id,
        name: "hello".to_owned(),
        status: Some(3),
        signal: None,
        reason: "the application exited with status 3".to_owned(),
    };
    let done = run(
        &Daemon::hypervisor(vec![Reply::Ok(Success::Exited(exit))]),
        &["wait", "--enclave-name", "hello"],
    );
    let expected = json!({"EnclaveName": "hello", "EnclaveID": enclave().id, "ExitStatus": 3, "Signal": null,
        "Reason": "the application exited with status 3"});
    assert_eq!((done.status, done.json()), (0, expected));
}

#[test]
fn wrong_options_exit_with_2_as_nitro_clis_do() {
    let daemon = Daemon::none();
    let wrong: [&[&str]; 8] = [
        &["run-enclave", "--memory", "512", "--eif-path", "x"],
        &[
            "run-enclave",
            "--cpu-count",
            "1",
            "--cpu-ids",
            "1",
            "--memory",
            "512",
            "--eif-path",
            "x",
        ],
        &["run-enclave", "--config", "x", "--memory", "512"],
        &["terminate-enclave"],
        &["terminate-enclave", "--all", "--enclave-id", "x"],
        &["console"],
        &["pcr"],
        &["no-such-command"],
    ];
    for args in wrong {
        let done = run(&daemon, args);
        assert_eq!(done.status, 2, "{args:?}: {}", done.stderr);
        assert!(!done.stderr.is_empty());
    }
}

/// Statuses of nitro-cli 1.5.2, against which `e2e/differential` holds the same command lines.
#[test]
fn wrong_values_and_files_have_nitro_clis_codes() {
    let daemon = Daemon::none();
    let run_enclave = "run-enclave --eif-path x --memory 512 --cpu-count 2";
    let cases = [
        (3, "run-enclave --eif-path x --memory 512 --cpu-count two"),
        (3, "run-enclave --eif-path x --memory 512 --cpu-ids 1 b"),
        (3, "run-enclave --eif-path x --memory lots --cpu-count 2"),
        (3, &*format!("{run_enclave} --enclave-cid 3")),
        (3, &*format!("{run_enclave} --enclave-cid 4294967295")),
        (3, "console --enclave-id x --disconnect-timeout soon"),
        (35, "describe-eif --eif-path /no/such.eif"),
        (19, "pcr --input /no/such"),
        (19, "pcr --signing-certificate /no/such"),
        (1, "sign-eif"),
        (60, "sign-eif --eif-path x"),
    ];
    for (status, line) in cases {
        let args: Vec<_> = line.split(' ').collect();
        for done in [run(&daemon, &args), run_as_nitro_cli(&daemon, &args)] {
            assert_eq!(done.status, status, "{line}: {}", done.stderr);
            let code = format!("[ E{status:02} ] ");
            assert!(done.stderr.starts_with(&code), "{line}: {}", done.stderr);
        }
    }
    // Enclos's own commands have no codes.
    assert_eq!(run(&daemon, &["terminate", "--grace", "x"]).status, 2);
}

/// Scripts that ask for the third word get the version whose commands these are.
#[test]
fn nitro_clis_face_says_which_version_it_serves() {
    let daemon = Daemon::none();
    let done = run_as_nitro_cli(&daemon, &["--version"]);
    let ours = env!("CARGO_PKG_VERSION");
    assert_eq!(done.stdout, format!("Nitro CLI 1.5.2 (Enclos {ours})\n"));
}

#[test]
fn nitro_clis_face_has_nitro_clis_commands_only() {
    let daemon = Daemon::none();
    assert_eq!(run_as_nitro_cli(&daemon, &["doctor"]).status, 2);
    let help = run_as_nitro_cli(&daemon, &["--help"]).stdout;
    assert!(
        help.contains("run-enclave") && !help.contains("doctor"),
        "{help}"
    );
    let help = run(&daemon, &["--help"]).stdout;
    assert!(
        help.contains("run-enclave") && help.contains("doctor"),
        "{help}"
    );
}

#[test]
fn explain_speaks_on_stderr_and_knows_every_code() {
    let daemon = Daemon::none();
    let done = run_as_nitro_cli(&daemon, &["explain", "--error-code", "E27"]);
    assert_eq!((done.status, done.stdout.as_str()), (0, ""));
    assert!(
        done.stderr.starts_with("E27 InsufficientMemoryAvailable\n"),
        "{}",
        done.stderr
    );
    assert_eq!(run(&daemon, &["explain", "--error-code", "E61"]).status, 3);
}

#[test]
fn pages_and_completions_are_made_for_either_name() {
    let daemon = Daemon::none();
    for (name, command) in [("enclos", "attest-verify"), ("nitro-cli", "run-enclave")] {
        let folder = daemon.path(&format!("man-{name}"));
        let done = run(&daemon, &["man", &folder, "--name", name]);
        assert_eq!(done.status, 0, "{}", done.stderr);
        let pages = std::fs::read_dir(&folder).unwrap().flatten();
        let pages: Vec<_> = pages
            .map(|page| page.file_name().into_string().unwrap())
            .collect();
        assert!(
            pages.contains(&format!("{name}-{command}.1")),
            "{name}: {pages:?}"
        );
        assert!(
            pages.iter().all(|page| page.starts_with(name)),
            "{name}: {pages:?}"
        );
        let page = std::fs::read_to_string(format!("{folder}/{name}-{command}.1")).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = run(&daemon, &["completions", shell, "--name", name]).stdout;
            assert!(script.contains("run-enclave"), "{name} {shell}");
            let own = script.contains("assemble");
            assert_eq!(own, name == "enclos", "{name} {shell}");
        }
    }
}
