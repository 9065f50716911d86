//! Enclaves come and go; what is left of them is nothing.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use enclos_api::control::{Event, Reply, Request, RunRequest, Selector, State, Success};
use enclos_hypervisor::wire;
use rustix::process::{Pid, Signal};

use crate::harness::{
    Daemon, FAILING, LIMIT, SILENT, alive, eventually, file, group, image, request,
};

/// Longer than any test: the enclave stays in its boot.
const NEVER: u64 = 600_000;

#[test]
fn a_guest_that_stays_silent_ends_with_the_boot_timeout() {
    let daemon = Daemon::start(SILENT, 400);
    let running = daemon.run_in_background(request(), &file(&image()));
    let vmm = daemon.launched().pid;
    let failure = running.join().unwrap().unwrap_err();
    assert_eq!(failure.code, 36);
    assert!(
        failure.message.contains("no heartbeat within 400 ms"),
        "{failure}"
    );
    assert_eq!(
        group(vmm),
        [0; 0],
        "vmm and engine are gone when the answer comes"
    );
    daemon.assert_clean();
}

#[test]
fn an_engine_that_fails_is_quoted() {
    let daemon = Daemon::start(FAILING, NEVER);
    let failure = daemon.run(request(), &file(&image())).unwrap_err();
    assert_eq!(failure.code, 36);
    assert!(
        failure.message.contains("QEMU exited with status 3"),
        "{failure}"
    );
    assert!(
        failure.message.contains("qemu: no such device"),
        "{failure}"
    );
    daemon.assert_clean();
}

#[test]
fn an_enclave_is_visible_and_can_be_terminated_while_it_boots() {
    let daemon = Daemon::start(SILENT, NEVER);
    let running = daemon.run_in_background(request(), &file(&image()));
    let enclave = daemon.launched();
    assert_eq!(
        (enclave.state, enclave.name.as_str(), enclave.cid),
        (State::Empty, "app", 16)
    );
    assert!(enclave.vsock.exists());
    assert_eq!(group(enclave.pid).len(), 2, "the vmm and its engine");
    assert_eq!(daemon.host().memory_free_mib, 2048 - 128);
    let Success::Terminated { id, .. } = daemon.terminate(&enclave.id).unwrap() else {
        panic!("terminated")
    };
    assert_eq!(id, enclave.id);
    assert_eq!(
        group(enclave.pid),
        [0; 0],
        "nothing is left when the answer comes"
    );
    daemon.assert_clean();
    let failure = running.join().unwrap().unwrap_err();
    assert!(
        failure.message.contains("terminated by request"),
        "{failure}"
    );
}

#[test]
fn processes_and_files_have_the_documented_owners() {
    let daemon = Daemon::start(SILENT, NEVER);
    let _running = daemon.run_in_background(request(), &file(&image()));
    let enclave = daemon.launched();
    let dir = enclave.vsock.parent().unwrap().metadata().unwrap();
    assert_eq!(dir.mode() & 0o7777, 0o3770);
    assert_eq!(enclave.vsock.metadata().unwrap().mode() & 0o777, 0o770);
    let own = rustix::process::geteuid().as_raw();
    let uids: Vec<u32> = group(enclave.pid).into_iter().map(real_uid).collect();
    if own == 0 {
        assert_eq!(dir.uid(), 1_880_000_000);
        assert_eq!(uids, [dir.uid(), dir.uid()]);
    } else {
        assert_eq!((dir.uid(), uids), (own, vec![own, own]));
    }
    assert!(limit(enclave.pid, "Max core file size").starts_with("0 "));
}

fn real_uid(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn limit(pid: u32, name: &str) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.trim().to_owned()
}

#[test]
fn a_killed_vmm_takes_everything_with_it() {
    let daemon = Daemon::start(SILENT, NEVER);
    let running = daemon.run_in_background(request(), &file(&image()));
    let enclave = daemon.launched();
    let engine = group(enclave.pid)
        .into_iter()
        .find(|pid| *pid != enclave.pid)
        .unwrap();
    kill(enclave.pid);
    let failure = running.join().unwrap().unwrap_err();
    assert!(failure.message.contains("killed by signal 9"), "{failure}");
    assert!(!alive(engine));
    daemon.assert_clean();
}

#[test]
fn a_killed_engine_ends_its_enclave() {
    let daemon = Daemon::start(SILENT, NEVER);
    let running = daemon.run_in_background(request(), &file(&image()));
    let enclave = daemon.launched();
    let engine = group(enclave.pid)
        .into_iter()
        .find(|pid| *pid != enclave.pid)
        .unwrap();
    kill(engine);
    let failure = running.join().unwrap().unwrap_err();
    assert!(
        failure.message.contains("QEMU was killed by signal 9"),
        "{failure}"
    );
    daemon.assert_clean();
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn a_killed_daemon_takes_its_enclaves_with_it_and_the_next_one_cleans_up() {
    let mut daemon = Daemon::start(SILENT, NEVER);
    let client = daemon.connect();
    let run = Request::Run(request());
    wire::send(&client, &run, Some(file(&image()).as_fd()), LIMIT).unwrap();
    let enclave = daemon.launched();
    daemon.signal(Signal::KILL);
    eventually("the enclave's processes to die", || {
        group(enclave.pid).is_empty()
    });
    let broken = wire::receive::<Reply>(&client, LIMIT);
    assert!(broken.is_err(), "the client's connection ends");
    assert_eq!(daemon.leftovers(), [enclave.id]);
    daemon.restart(NEVER);
    daemon.assert_clean();
}

#[test]
fn a_stopped_daemon_ends_its_enclaves_first() {
    let mut daemon = Daemon::start(SILENT, NEVER);
    let running = daemon.run_in_background(request(), &file(&image()));
    let enclave = daemon.launched();
    let status = daemon.signal(Signal::TERM);
    assert!(status.success(), "{status}");
    assert_eq!(group(enclave.pid), [0; 0]);
    assert_eq!(daemon.leftovers(), [""; 0]);
    assert!(!daemon.socket().exists());
    // Either the reason arrived, or the connection ended with the daemon.
    if let Ok(Err(failure)) = running.join() {
        assert!(
            failure.message.contains("the hypervisor was stopped"),
            "{failure}"
        );
    }
}

#[test]
fn many_starts_at_once_do_not_share_anything() {
    const MANY: usize = 8;
    let daemon = Daemon::start(SILENT, NEVER);
    let image = file(&image());
    let running: Vec<_> = (0..MANY)
        .map(|_| daemon.run_in_background(request(), &image))
        .collect();
    eventually("all of them", || {
        let launched = |enclave: &enclos_api::control::Enclave| enclave.boot.launched_ms.is_some();
        daemon
            .describe()
            .iter()
            .filter(|enclave| launched(enclave))
            .count()
            == MANY
    });
    let enclaves = daemon.describe();
    let mut names: Vec<&str> = enclaves
        .iter()
        .map(|enclave| enclave.name.as_str())
        .collect();
    let mut cids: Vec<u32> = enclaves.iter().map(|enclave| enclave.cid).collect();
    names.sort_unstable();
    cids.sort_unstable();
    assert_eq!(
        names,
        [
            "app", "app_1", "app_2", "app_3", "app_4", "app_5", "app_6", "app_7"
        ]
    );
    assert_eq!(cids, [16, 17, 18, 19, 20, 21, 22, 23]);
    for enclave in &enclaves {
        daemon.terminate(&enclave.id).unwrap();
    }
    assert!(
        running
            .into_iter()
            .all(|running| running.join().unwrap().is_err())
    );
    daemon.assert_clean();
}

#[test]
fn memory_is_accounted_for_while_an_enclave_boots() {
    let daemon = Daemon::start(SILENT, NEVER);
    let image = file(&image());
    let large = RunRequest {
        memory_mib: 1500,
        ..request()
    };
    let running = daemon.run_in_background(large.clone(), &image);
    let enclave = daemon.launched();
    assert_eq!(daemon.run(large, &image).unwrap_err().code, 27);
    daemon.terminate(&enclave.id).unwrap();
    assert!(running.join().unwrap().is_err());
    daemon.assert_clean();
}

#[test]
fn watchers_and_waiters_learn_of_the_end() {
    let daemon = Daemon::start(SILENT, NEVER);
    let watcher = daemon.connect();
    wire::send(&watcher, &Request::Watch, None, LIMIT).unwrap();
    let (reply, _) = wire::receive::<Reply>(&watcher, LIMIT).unwrap();
    assert_eq!(reply, Reply::Ok(Success::Streaming));
    let running = daemon.run_in_background(request(), &file(&image()));
    let enclave = daemon.launched();
    let by_name = || Request::Wait {
        enclave: Selector::Name("app".into()),
    };
    let waiter = daemon.connect();
    wire::send(&waiter, &by_name(), None, LIMIT).unwrap();
    daemon.terminate(&enclave.id).unwrap();
    let mut seen = Vec::new();
    let exit = loop {
        match wire::receive::<Event>(&watcher, LIMIT).unwrap().0 {
            Event::Removed(exit) => break exit,
            Event::Added(_) => seen.push("added"),
            Event::Changed(enclave) => {
                seen.push(if enclave.state == State::Terminating {
                    "ending"
                } else {
                    "changed"
                });
            }
        }
    };
    assert_eq!(seen, ["added", "changed", "ending"]);
    assert_eq!(exit.reason, "terminated by request");
    let (reply, _) = wire::receive::<Reply>(&waiter, LIMIT).unwrap();
    assert_eq!(reply, Reply::Ok(Success::Exited(exit.clone())));
    let late = daemon.ask(&by_name()).unwrap();
    assert_eq!(late, Success::Exited(exit), "known after the end, too");
    assert!(running.join().unwrap().is_err());
}

#[test]
fn a_debug_enclaves_console_is_there_and_a_production_ones_is_not() {
    // The engine writes to the serial port's socket, whose number is on its command line. bash, because
    // POSIX shells know descriptors up to 9 only.
    let engine = r#"exec /bin/bash -c '
        for argument; do case "$argument" in socket,id=console,fd=*)
            echo console works >&"${argument##*=}";; esac; done
        exec /bin/sleep 300' qemu "$@""#;
    let daemon = Daemon::start(engine, NEVER);
    let image = file(&image());
    let debug = RunRequest {
        debug: true,
        ..request()
    };
    let running = daemon.run_in_background(debug, &image);
    let enclave = daemon.launched();
    let client = daemon.connect();
    let follow = Request::Console {
        enclave: Selector::Id(enclave.id.clone()),
    };
    let reply = crate::harness::ask(&client, &follow, None);
    assert_eq!(reply, Ok(Success::Streaming));
    let mut line = [0; 14];
    (&client).read_exact(&mut line).unwrap();
    assert_eq!(&line, b"console works\n");
    daemon.terminate(&enclave.id).unwrap();
    assert_eq!(crate::harness::drain(&client), b"", "the end of the stream");
    assert!(running.join().unwrap().is_err());

    let running = daemon.run_in_background(request(), &image);
    let enclave = daemon.launched();
    let follow = Request::Console {
        enclave: Selector::Id(enclave.id.clone()),
    };
    assert_eq!(daemon.ask(&follow).unwrap_err().code, 44);
    daemon.terminate(&enclave.id).unwrap();
    assert!(running.join().unwrap().is_err());
}

#[test]
fn an_image_whose_ramdisk_does_not_fit_is_refused_with_the_remedy() {
    let daemon = Daemon::start(SILENT, NEVER);
    let failure = daemon
        .run(request(), &file(&crate::harness::image_with_bomb()))
        .unwrap_err();
    assert_eq!(failure.code, 36);
    assert!(
        failure.message.contains("give the enclave more memory"),
        "{failure}"
    );
    daemon.assert_clean();
}
