//! How enclaves end, and what is left of them.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use enclos_e2e::child::{self, Child};
use enclos_e2e::image::Image;
use enclos_e2e::stack::Enclave;
use enclos_e2e::wait;

use crate::Fixture;
use crate::clients::observation;

const LIMIT: Duration = Duration::from_secs(30);

/// Processes below the hypervisor, itself not counted.
fn descendants(id: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{id}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| {
            list.split_whitespace()
                .map(|word| word.parse().unwrap())
                .collect::<Vec<_>>()
        })
        .collect();
    children
        .iter()
        .flat_map(|child| [vec![*child], descendants(*child)].concat())
        .collect()
}

/// Folders of control groups that carry the enclave's name.
fn cgroups(below: &Path, id: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(id) {
                found.push(entry.path().display().to_string());
            }
            cgroups(&entry.path(), id, found);
        }
    }
}

fn expect_nothing_left(fixture: &Fixture, id: &str, processes: &[u32]) {
    wait::until("its processes are gone", LIMIT, || {
        Ok(processes
            .iter()
            .all(|process| child::has_ended(*process))
            .then_some(()))
    })
    .unwrap();
    let folder = fixture.stack.host.run_dir().join("enclaves").join(id);
    wait::until("its folder is gone", LIMIT, || {
        Ok((!folder.exists()).then_some(()))
    })
    .unwrap();
    let mut groups = Vec::new();
    cgroups(Path::new("/sys/fs/cgroup"), id, &mut groups);
    assert!(groups.is_empty(), "{groups:?}");
    assert!(
        enclos_e2e::control::enclaves(fixture.stack.host.run_dir())
            .unwrap()
            .is_empty()
    );
}

fn expect_port_closed(enclave: &Enclave<'_>) {
    wait::until("its port is closed", LIMIT, || {
        match TcpStream::connect(enclave.address) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Some(())),
            _ => Ok(None),
        }
    })
    .unwrap();
}

fn waiting(fixture: &Fixture) -> Image {
    fixture
        .builder()
        .test_program("wait", &["wait"], "")
        .unwrap()
}

#[test]
fn a_terminated_enclave_leaves_nothing() {
    let fixture = Fixture::new();
    let enclave = fixture.stack.host.run(&waiting(&fixture), &[]).unwrap();
    let processes = descendants(fixture.stack.host.hypervisor_id());
    assert!(
        processes.len() >= 2,
        "a vmm and a virtual machine: {processes:?}"
    );
    let printed = enclave.terminate().unwrap();
    assert!(printed.contains(&enclave.id), "{printed}");
    expect_nothing_left(&fixture, &enclave.id, &processes);
    expect_port_closed(&enclave);
}

#[test]
fn a_killed_vmm_leaves_nothing() {
    let fixture = Fixture::new();
    let enclave = fixture.stack.host.run(&waiting(&fixture), &[]).unwrap();
    let processes = descendants(fixture.stack.host.hypervisor_id());
    enclave.kill_vmm().unwrap();
    expect_nothing_left(&fixture, &enclave.id, &processes);
    expect_port_closed(&enclave);
    let again = fixture.stack.host.run(&waiting(&fixture), &[]).unwrap();
    assert_ne!(again.id, enclave.id);
}

/// Sends the program a byte, which lets it go on, until the enclave has ended: its id, and how.
fn ended(
    fixture: &Fixture,
    name: &str,
    arguments: &[&str],
    app: &str,
) -> (String, enclos_api::control::Exit) {
    let image = fixture
        .builder()
        .test_program(name, arguments, app)
        .unwrap();
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    let exit = std::thread::scope(|scope| {
        let exit = scope.spawn(|| enclave.wait(LIMIT));
        while !exit.is_finished() {
            // The publication ends with the enclave: refusals are expected.
            let _ = TcpStream::connect(enclave.address).and_then(|mut port| port.write_all(b"x"));
            std::thread::sleep(Duration::from_millis(100));
        }
        exit.join().unwrap().unwrap()
    });
    (enclave.id.clone(), exit)
}

fn exit_of(fixture: &Fixture, name: &str, arguments: &[&str]) -> enclos_api::control::Exit {
    ended(fixture, name, arguments, "").1
}

#[test]
fn the_applications_status_reaches_the_host() {
    let exit = exit_of(&Fixture::new(), "exit", &["exit", "3"]);
    assert_eq!((exit.status, exit.signal), (Some(3), None), "{exit:?}");
    assert!(exit.reason.contains('3'), "{exit:?}");
}

#[test]
fn the_applications_signal_reaches_the_host() {
    let exit = exit_of(&Fixture::new(), "abort", &["abort"]);
    assert_eq!((exit.status, exit.signal), (None, Some(6)), "{exit:?}");
}

/// An enclave whose application takes SIGUSR1 (10) as its image says, and is there to take it.
fn stopping<'a>(fixture: &'a Fixture, name: &str, arguments: &[&str]) -> Enclave<'a> {
    let app = "stop_signal = \"SIGUSR1\"\n";
    let image = fixture.builder().test_program(name, arguments, app);
    let enclave = fixture.stack.host.run(&image.unwrap(), &[]).unwrap();
    assert_eq!(observation(enclave.address), "ready");
    enclave
}

#[test]
fn an_application_stops_by_its_images_signal() {
    let fixture = Fixture::new();
    let enclave = stopping(&fixture, "stop", &["stop", "10", "7"]);
    enclave.terminate().unwrap();
    let exit = enclave.wait(LIMIT).unwrap();
    assert_eq!((exit.status, exit.signal), (Some(7), None), "{exit:?}");
    assert!(exit.reason.contains("terminated by request"), "{exit:?}");
}

#[test]
fn an_application_that_does_not_stop_is_killed() {
    let fixture = Fixture::new();
    let enclave = stopping(&fixture, "stubborn", &["stubborn", "10"]);
    let mut command = fixture.stack.host.enclos();
    command.args(["terminate-enclave", "--grace", "2", "--enclave-id"]);
    child::read(command.arg(&enclave.id), LIMIT).unwrap();
    let exit = enclave.wait(LIMIT).unwrap();
    assert_eq!((exit.status, exit.signal), (None, Some(9)), "{exit:?}");
}

#[test]
fn a_debug_enclave_has_a_console() {
    let fixture = Fixture::new();
    let image = fixture
        .builder()
        .test_program("facts", &["facts"], "")
        .unwrap();
    let enclave = fixture.stack.host.run(&image, &["--debug-mode"]).unwrap();
    let mut command = fixture.stack.host.enclos();
    command.args([
        "console",
        "--enclave-id",
        &enclave.id,
        "--disconnect-timeout",
        "60",
    ]);
    let console = Child::start("console", command, &fixture.stack.dir.join("console.log")).unwrap();
    wait::until("the program's words on the console", LIMIT, || {
        let _ = TcpStream::connect(enclave.address);
        Ok(console.log().contains("e2e-guest: answered").then_some(()))
    })
    .unwrap();
}

#[test]
fn a_production_enclave_has_none() {
    let fixture = Fixture::new();
    let enclave = fixture.stack.host.run(&waiting(&fixture), &[]).unwrap();
    let mut command = fixture.stack.host.enclos();
    command.args(["console", "--enclave-id", &enclave.id]);
    let output = child::output(&mut command, LIMIT).unwrap();
    assert_eq!(output.status.code(), Some(44), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("debug"),
        "{output:?}"
    );
}

/// What `enclos logs` shows of an enclave whose application printed lines that are meant to be somebody else's, and ended.
fn log_of_forger(fixture: &Fixture, name: &str, app: &str) -> String {
    let (id, exit) = ended(fixture, name, &["forge", "0"], app);
    assert_eq!(exit.status, Some(0), "{exit:?}");
    let mut command = fixture.stack.host.enclos();
    child::read(command.args(["logs", &id]), LIMIT).unwrap()
}

#[test]
fn the_host_reads_what_an_application_prints_only_if_its_image_says_so() {
    let fixture = Fixture::new();
    let silent = log_of_forger(&fixture, "silent", "");
    assert!(
        silent.contains("info: ended: the application exited"),
        "{silent}"
    );
    assert!(
        !silent.contains("app: ") && !silent.contains("forged"),
        "{silent}"
    );
    let loud = log_of_forger(&fixture, "loud", "log_to_host = true\n");
    let said: Vec<&str> = loud
        .lines()
        .filter(|line| line.starts_with("app: "))
        .collect();
    let expected = [
        "app: e2e-guest: forge 0",
        "app: info: ended:  [2Jforged",
        "app: e2e-guest: the last word",
    ];
    assert_eq!(said, expected, "{loud}");
    let last = loud.lines().last().unwrap();
    assert!(
        last.starts_with("info: ended: the application exited"),
        "{loud}"
    );
}
