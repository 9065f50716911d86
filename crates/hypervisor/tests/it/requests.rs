//! Requests that cannot be granted, and their numbers.

use enclos_api::control::{Cpus, Request, RunRequest, Selector};

use crate::harness::{Daemon, SILENT, file, image, request};

#[test]
fn resources_are_refused_with_awss_numbers() {
    let daemon = Daemon::start(SILENT, 500);
    let image = file(&image());
    let code = |request: RunRequest| daemon.run(request, &image).unwrap_err().code;
    let absent = u32::MAX - 1;
    let cases = [
        (
            26,
            RunRequest {
                memory_mib: 63,
                ..request()
            },
        ),
        (
            27,
            RunRequest {
                memory_mib: 2049,
                ..request()
            },
        ),
        (
            22,
            RunRequest {
                cpus: Cpus::Count(100_000),
                ..request()
            },
        ),
        (
            3,
            RunRequest {
                cpus: Cpus::Count(0),
                ..request()
            },
        ),
        (
            20,
            RunRequest {
                cpus: Cpus::Ids(vec![0, 0]),
                ..request()
            },
        ),
        (
            21,
            RunRequest {
                cpus: Cpus::Ids(vec![absent]),
                ..request()
            },
        ),
        (
            3,
            RunRequest {
                cid: Some(3),
                ..request()
            },
        ),
        (
            58,
            RunRequest {
                name: "a/b".into(),
                ..request()
            },
        ),
        (
            14,
            RunRequest {
                protocol: 999,
                ..request()
            },
        ),
    ];
    for (expected, request) in cases {
        let shown = format!("{request:?}");
        assert_eq!(code(request), expected, "{shown}");
    }
    daemon.assert_clean();
}

#[test]
fn enclaves_that_do_not_exist_have_two_numbers() {
    let daemon = Daemon::start(SILENT, 500);
    let by_id = || Selector::Id("i-0123456789abcdef0-enc1".into());
    let by_name = || Selector::Name("nobody".into());
    for (code, enclave) in [(40, by_id()), (58, by_name())] {
        for request in [
            Request::Terminate {
                enclave: enclave.clone(),
                grace_s: 0,
            },
            Request::Console {
                enclave: enclave.clone(),
            },
            Request::Wait {
                enclave: enclave.clone(),
            },
        ] {
            assert_eq!(daemon.ask(&request).unwrap_err().code, code, "{request:?}");
        }
    }
}

#[test]
fn the_host_tells_what_it_is() {
    let daemon = Daemon::start(SILENT, 500);
    let host = daemon.host();
    assert_eq!(host.instance_id, crate::harness::INSTANCE);
    assert_eq!(host.engine, "qemu");
    assert_eq!(host.engine_version, "QEMU emulator version 7.2.0");
    assert_eq!((host.memory_total_mib, host.memory_free_mib), (2048, 2048));
    assert!(!host.cpu_ids.is_empty());
}
