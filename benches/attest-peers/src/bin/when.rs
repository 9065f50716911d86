//! Prints the time of the document that the bench verifies, as `faketime` takes it.

use enclos_attest::document::UnverifiedDocument;

const AWS: &[u8] = include_bytes!("../../../../crates/attest/tests/vectors/aws.bin");

fn main() {
    let document = UnverifiedDocument::parse(AWS).expect("the vector is a document");
    println!("{}", document.unverified_claims().timestamp.as_secs());
}
