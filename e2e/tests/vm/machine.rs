//! What an application sees of its machine.

use std::time::{SystemTime, UNIX_EPOCH};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::Fixture;
use crate::clients::observation;

#[test]
fn the_application_starts_as_its_image_says_and_sees_no_device() {
    let fixture = Fixture::new();
    let app =
        "workdir = \"/etc\"\nuser = \"worker:workers\"\nenv = { GREETING = \"hello\\nworld\" }\n";
    let image = fixture
        .builder()
        .test_program("facts", &["facts"], app)
        .unwrap();
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    let seen = observation(enclave.address);
    let host = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert_eq!(
        (&seen["uid"], &seen["gid"]),
        (&json!(1234), &json!(4321)),
        "{seen}"
    );
    assert_eq!(seen["cwd"], "/etc");
    assert_eq!(seen["arguments"], json!(["/bin/e2e-guest", "facts"]));
    assert_eq!(seen["environment"]["GREETING"], "hello\nworld");
    assert!(seen["environment"]["AWS_ENDPOINT_URL_KMS"].is_string());
    assert_eq!(seen["interfaces"], json!(["lo"]), "no network card");
    assert_eq!(seen["block_devices"], json!([]), "no disk");
    assert_eq!(seen["rng_current"], "nsm-hwrng");
    let skew = host - seen["unix_time"].as_f64().unwrap();
    assert!(skew.abs() < 2.0, "the guest's clock is off by {skew} s");
}

#[test]
fn the_lean_kernel_and_debians_give_an_application_the_same_machine() {
    let fixture = Fixture::new();
    let seen = kernels(&fixture).map(|(name, folder)| {
        let builder = fixture.builder().with_kernel(folder);
        let image = builder.test_program(&name, &["facts"], "").unwrap();
        let enclave = fixture.stack.host.run(&image, &[]);
        let mut seen = observation(enclave.unwrap().address);
        assert_eq!(seen["rng_current"], "nsm-hwrng", "{name}");
        assert_eq!(seen["block_devices"], json!([]), "{name}: no disk");
        for differs in ["unix_time", "command_line"] {
            seen[differs].take();
        }
        seen
    });
    assert_eq!(seen[0], seen[1]);
}

/// The newest kernel of each making.
fn kernels(fixture: &Fixture) -> [(String, PathBuf); 2] {
    let folders = std::fs::read_dir(&fixture.bench.kernels).unwrap();
    let folders = folders.map(|entry| entry.unwrap().path());
    let kernels: BTreeMap<String, PathBuf> = folders
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect();
    ["-enclos", "-cloud-amd64"].map(|ending| {
        let mut found = kernels.iter().filter(|(name, _)| name.ends_with(ending));
        let (name, folder) = found
            .next_back()
            .unwrap_or_else(|| panic!("no kernel {ending}"));
        (name.clone(), folder.clone())
    })
}

#[test]
fn an_enclave_is_described_as_nitro_cli_describes_it() {
    let fixture = Fixture::new();
    let image = fixture
        .builder()
        .test_program("wait", &["wait"], "")
        .unwrap();
    let enclave = fixture
        .stack
        .host
        .run(&image, &["--enclave-cid", "77", "--enclave-name", "seven"])
        .unwrap();
    let mut command = fixture.stack.host.enclos();
    let printed = enclos_e2e::child::read(
        command.arg("describe-enclaves"),
        std::time::Duration::from_secs(20),
    );
    let printed: Value = serde_json::from_str(&printed.unwrap()).unwrap();
    let one = &printed[0];
    assert_eq!(
        (&one["EnclaveID"], &one["EnclaveName"]),
        (&json!(enclave.id), &json!("seven")),
        "{printed}"
    );
    assert_eq!(
        (&one["EnclaveCID"], &one["MemoryMiB"]),
        (&json!(77), &json!(image.memory_mib))
    );
    assert_eq!(
        (&one["State"], &one["Flags"]),
        (&json!("RUNNING"), &json!("NONE"))
    );
    assert_eq!(
        one["Measurements"]["PCR0"],
        image.measurements.pcr0.as_str()
    );
}
