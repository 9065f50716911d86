//! Images: the same from the same, refused when damaged.

use std::fs;
use std::path::Path;
use std::time::Duration;

use enclos_e2e::child;
use enclos_e2e::image::{Builder, Image};

use crate::Fixture;

#[test]
fn building_twice_gives_the_same_bytes() {
    let fixture = Fixture::new();
    let build = |folder: &str| {
        let dir = fixture.stack.dir.join(folder);
        let builder = Builder::new(&fixture.bench, dir, fixture.stack.kms.ca()).unwrap();
        let image = builder.flask_backend("flask").unwrap();
        (fs::read(image.eif).unwrap(), image.measurements)
    };
    let (first, second) = (build("first"), build("second"));
    assert!(
        first == second,
        "two builds differ: {:?} and {:?}",
        first.1,
        second.1
    );
}

/// Each damage with a word that the message must hold.
fn damages(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let flipped = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    vec![
        ("empty", Vec::new()),
        ("garbage", vec![0xa5; 100_000]),
        ("magic", flipped(0)),
        ("version", flipped(5)),
        ("truncated header", good[..100].to_vec()),
        ("truncated body", good[..good.len() / 2].to_vec()),
        ("last byte", flipped(good.len() - 1)),
        ("middle byte", flipped(good.len() / 2)),
        ("appended", [good, b"more"].concat()),
    ]
}

#[test]
fn damaged_images_are_refused_and_the_hypervisor_goes_on() {
    let fixture = Fixture::new();
    let image = fixture
        .builder()
        .test_program("wait", &["wait"], "")
        .unwrap();
    let good = fs::read(&image.eif).unwrap();
    for (name, bytes) in damages(&good) {
        let file = fixture.stack.dir.join("damaged.eif");
        fs::write(&file, bytes).unwrap();
        let (code, said) = run(&fixture, &file, &["--memory", "256"]);
        assert!(
            matches!(code, Some(1..=255)) && !said.trim().is_empty(),
            "{name}: {code:?} {said}"
        );
        assert!(!said.contains("panicked"), "{name}: {said}");
    }
    let Image { measurements, .. } = &image;
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    assert_eq!(
        enclave.describe().unwrap().measurements.pcr0,
        measurements.pcr0
    );
}

#[test]
fn impossible_requests_are_refused_with_awss_codes() {
    let fixture = Fixture::new();
    let image = fixture
        .builder()
        .test_program("wait", &["wait"], "")
        .unwrap();
    let (code, said) = run(&fixture, &image.eif, &["--memory", "99999999"]);
    assert_eq!(code, Some(27), "{said}");
    let (_, said) = run(&fixture, Path::new("no-such.eif"), &["--memory", "256"]);
    assert!(said.contains("no-such.eif"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("{}:5000", taken.local_addr().unwrap());
    let (code, said) = run(
        &fixture,
        &image.eif,
        &["--memory", "256", "--publish", &publish],
    );
    assert_ne!(code, Some(0));
    assert!(
        said.contains(&taken.local_addr().unwrap().to_string()),
        "{said}"
    );
    let left = enclos_e2e::control::enclaves(fixture.stack.host.run_dir()).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// `run-enclave`'s exit code and everything it said.
fn run(fixture: &Fixture, eif: &Path, options: &[&str]) -> (Option<i32>, String) {
    let mut command = fixture.stack.host.enclos();
    command
        .args(["run-enclave", "--cpu-count", "1", "--eif-path"])
        .arg(eif)
        .args(options);
    let output = child::output(&mut command, Duration::from_secs(60)).unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}
