//! `enclos.toml`, and what is said about mistakes in it.

use std::fs;
use std::path::Path;

use enclos_api::config::Kms;
use enclos_eif::image::{BuildConfig, ConfigError};

use crate::common::chain;

fn load(folder: &Path, text: &str) -> Result<BuildConfig, ConfigError> {
    let path = folder.join("enclos.toml");
    fs::write(&path, text).unwrap();
    BuildConfig::load(&path)
}

#[test]
fn enclos_toml_is_read_and_its_mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(load(folder.path(), "").unwrap(), BuildConfig::default());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap();
    fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
    let kms = "[kms]\nregion = 'us-east-1'\nserver_name = 'kms.enclos.internal'\nca = 'ca.pem'\n";
    let text = format!(
        "[app]\ncommand = ['/a', 'b']\nenv = {{ X = '1' }}\n[ingress]\nports = [80]\nattested_tls = [80]\n{kms}"
    );
    let config = load(folder.path(), &text).unwrap();
    assert_eq!(config.app.command.unwrap(), ["/a", "b"]);
    assert_eq!(config.ports.unwrap(), [80]);
    assert_eq!(config.attested_tls, [80]);
    let plain = config.kms.unwrap();
    assert_eq!(plain.ca_pem, certificate.pem());
    // What is off is not written: images without it keep their bytes.
    let written = |kms: &Kms| serde_json::to_string(kms).unwrap();
    assert!(!plain.attested_signing && !written(&plain).contains("attested_signing"));
    let config = load(folder.path(), &format!("{kms}attested_signing = true")).unwrap();
    let signing = config.kms.unwrap();
    assert!(written(&signing).contains(r#""attested_signing":true"#));
    assert_eq!(
        serde_json::from_str::<Kms>(&written(&signing)).unwrap(),
        signing
    );
    for (text, expected) in [
        ("[app]\ncomand = []", "unknown field `comand`"),
        ("[kms]\nregion = 'x'", "missing field"),
        ("[ingress]\nports = [70000]", "70000"),
        ("[ingress]\nports = [0]", "ingress.ports"),
        ("[app]\ncommand = []", "app.command"),
        ("[app]\nworkdir = 'x'", "app.workdir"),
        ("[app]\nenv = { 'A=B' = '' }", "app.env"),
        (
            &kms.replace("ca.pem", "none.pem"),
            "none.pem as the CA certificate of its KMS",
        ),
        (&kms.replace("ca.pem", "/dev/zero"), "larger than"),
        (&kms.replace("ca.pem", "enclos.toml"), "no PEM certificate"),
        (
            &kms.replace("us-east-1", ""),
            r#"kms.region is "", expected a region"#,
        ),
        (
            &kms.replace("kms.enclos.internal", ""),
            r#"kms.server_name is "", expected a name"#,
        ),
        (&format!("{kms}attested_signing = 1"), "expected a boolean"),
    ] {
        let error = load(folder.path(), text).unwrap_err();
        assert!(
            chain(&error).contains(expected),
            "{text}: {}",
            chain(&error)
        );
    }
}
