//! Programs that others wrote, unmodified, inside an enclave.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use enclos_attest::UnixMillis;
use enclos_attest::document::{TrustAnchors, UnverifiedDocument, VerifiedDocument, VerifyOptions};
use enclos_e2e::image::Image;
use enclos_e2e::wait;
use serde_json::Value;

use crate::Fixture;

/// Connects until a line of JSON comes back.
pub(crate) fn observation(address: SocketAddr) -> Value {
    wait::until("the program answers", Duration::from_secs(60), || {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok((!line.is_empty())
            .then(|| serde_json::from_str::<Value>(&line))
            .transpose()?)
    })
    .unwrap()
}

fn verified(fixture: &Fixture, document: &Value) -> VerifiedDocument {
    let root = std::fs::read(fixture.stack.host.state.join("root.pem")).unwrap();
    let anchors = TrustAnchors::new().with_root("test", &root).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = UnixMillis(now.as_millis().try_into().unwrap());
    let bytes = hex::decode(document.as_str().unwrap()).unwrap();
    UnverifiedDocument::parse(&bytes)
        .unwrap()
        .verify(&anchors, now, &VerifyOptions::default())
        .unwrap()
}

fn pcr(document: &VerifiedDocument, index: u16) -> String {
    document.pcrs()[&index.try_into().unwrap()].to_string()
}

fn observe(fixture: &Fixture, image: &Image) -> Value {
    let enclave = fixture.stack.host.run(image, &[]).unwrap();
    let seen = observation(enclave.address);
    assert_eq!(seen["error"], Value::Null, "{seen}");
    seen
}

#[test]
fn aws_nsm_crate_finds_its_device() {
    let fixture = Fixture::new();
    let image = fixture.builder().test_program("nsm", &["nsm"], "").unwrap();
    let seen = observe(&fixture, &image);
    assert_eq!(seen["pcr0"]["data"], image.measurements.pcr0.as_str());
    assert_eq!(seen["pcr0"]["lock"], true);
    assert_eq!(seen["pcr16"]["data"], seen["extended"]);
    assert_eq!(seen["extend_locked"], "Error(ReadOnlyIndex)");
    assert_eq!(seen["lock"], "LockPCR");
    assert_eq!(seen["lock_range"], "LockPCRs");
    assert_eq!(seen["out_of_range"], "Error(InvalidIndex)");
    assert_ne!(seen["random"][0], seen["random"][1]);
    assert!(
        seen["describe"].as_str().unwrap().contains("max_pcrs: 32"),
        "{seen}"
    );
    let document = verified(&fixture, &seen["document"]);
    assert_eq!(document.nonce(), Some([7; 16].as_slice()));
    assert_eq!(document.user_data(), Some(b"from AWS's crate".as_slice()));
    assert_eq!(pcr(&document, 2), image.measurements.pcr2);
    assert_eq!(pcr(&document, 16), seen["extended"]);
}

#[test]
fn pypi_aws_nsm_interface_finds_its_device() {
    let fixture = Fixture::new();
    let image = fixture.builder().python_client("python-client").unwrap();
    let seen = observe(&fixture, &image);
    assert_eq!(seen["locked"], true);
    let document = verified(&fixture, &seen["document"]);
    assert_eq!(document.user_data(), Some(b"from Python".as_slice()));
    assert_eq!(pcr(&document, 0), image.measurements.pcr0);
}
