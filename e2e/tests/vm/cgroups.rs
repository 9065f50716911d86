//! The hypervisor on a host that has cgroup v2 with its controllers: a virtual machine, whatever this machine has.

use serde_json::json;

use crate::Fixture;
use crate::clients::observation;

#[test]
fn cgroup_v2_holds_an_enclave_and_nothing_of_it_is_left() {
    let fixture = Fixture::new();
    let builder = fixture.builder();
    let inner = builder.test_program("inner", &["wait"], "").unwrap();
    let image = builder.nested_hypervisor("host", &inner).unwrap();
    let enclave = fixture.stack.host.run(&image, &["--cpu-count", "2"]);
    let enclave = enclave.unwrap();
    let seen = observation(enclave.address);
    assert_eq!(seen["error"], json!(null), "{seen}");

    // 128 MiB, a third of that for unpacked ramdisks, and what docs/hypervisor.md says for engine and vmm.
    let files = json!({
        "cpuset.cpus": "1", "cpuset.mems": "0", "memory.max": ((128_u64 + 42 + 1280) << 20).to_string(),
        "memory.swap.max": seen["files"]["memory.swap.max"], "pids.max": "512",
    });
    assert_eq!(seen["files"], files, "{seen}");
    let swap = seen["files"]["memory.swap.max"].as_str();
    assert!(swap.is_none_or(|max| max == "0"), "{seen}");
    assert_eq!(
        seen["affinity"],
        json!([[1], [1]]),
        "vmm and engine: {seen}"
    );
    let user = seen["uids"][0].as_u64().unwrap();
    assert!(user != 0 && seen["uids"][1] == user, "{seen}");
    assert_eq!(seen["hypervisor"], "0::/hypervisor-run-host");
    let doctor = seen["doctor"][0]["found"].as_str().unwrap();
    assert!(
        doctor.starts_with("cgroup v2: cpuset, memory, pids; "),
        "{seen}"
    );

    let log = seen["log"].as_str().unwrap();
    assert_eq!(seen["left_by_sigkill"], json!([seen["group"]]), "{seen}");
    assert_eq!(seen["left_after_restart"], json!([]), "{seen}");
    assert!(
        log.contains("removed the cgroup that an earlier hypervisor left of i-"),
        "{log}"
    );

    let hungry = seen["hungry"].as_str().unwrap();
    assert!(hungry.contains("killed by signal 9"), "{hungry}");
    assert!(
        log.contains("took more than the memory.max of its cgroup"),
        "{log}"
    );
    assert_eq!(seen["left_after_hunger"], json!([]), "{seen}");
    assert_eq!(seen["status"], 0, "{log}");
    assert_eq!(seen["left_at_the_end"], json!([]), "{seen}");
}
