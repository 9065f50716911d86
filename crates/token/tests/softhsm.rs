//! Secret keys in a real token: SoftHSM's, through its library. `cargo xtask test` installs it.
//!
//! The library finds its tokens by a variable, which a process cannot set for itself: each test runs its own program again, with it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use enclos_token::{SecretKey, TokenError, Uri};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Whether this process is the one with the token; one without starts one, and waits for it.
fn has_token(test: &str) -> bool {
    if std::env::var_os("SOFTHSM2_CONF").is_some() {
        return true;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = new_token(directory.path());
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args([test, "--exact", "--nocapture"])
        .env("SOFTHSM2_CONF", config)
        .env("ENCLOS_PKCS11_MODULE", MODULE)
        .env("ENCLOS_PKCS11_PIN", "1234")
        .output()
        .unwrap();
    succeeded(&output);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn new_token(directory: &Path) -> std::path::PathBuf {
    let tokens = directory.join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let config = directory.join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&config, text).unwrap();
    let output = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "kms"])
        .args(["--so-pin", "5678", "--pin", "1234"])
        .env("SOFTHSM2_CONF", &config)
        .output();
    succeeded(&output.expect("softhsm2-util (package softhsm2)"));
    config
}

#[track_caller]
fn succeeded(output: &Output) {
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

fn uri(text: &str) -> Uri {
    Uri::parse(text).unwrap()
}

#[test]
fn a_key_is_made_once_and_derives_the_same_each_time() {
    if !has_token("a_key_is_made_once_and_derives_the_same_each_time") {
        return;
    }
    let first = uri("pkcs11:token=kms;object=first");
    let second = uri("pkcs11:token=kms;object=second;id=%02");
    let missing = SecretKey::open(&first).unwrap_err();
    assert!(matches!(missing, TokenError::Key { found: 0, .. }));
    let made = SecretKey::open_or_make(&first)
        .unwrap()
        .derive(b"a")
        .unwrap();
    let found = SecretKey::open_or_make(&first)
        .unwrap()
        .derive(b"a")
        .unwrap();
    assert_eq!(made, found);
    let other = SecretKey::open_or_make(&second)
        .unwrap()
        .derive(b"a")
        .unwrap();
    assert_ne!(made, other);
    // A login that ended, and a second one: see `library`.
    let key = SecretKey::open(&first).unwrap();
    assert_eq!(key.derive(b"a").unwrap(), made);
    assert_ne!(key.derive(b"b").unwrap(), made);
    let by_id = SecretKey::open(&uri("pkcs11:token=kms;id=%02")).unwrap();
    assert_eq!(by_id.derive(b"a").unwrap(), other);
    let both = SecretKey::open(&uri("pkcs11:token=kms")).unwrap_err();
    assert!(matches!(both, TokenError::Key { found: 2, .. }));
    let nameless = SecretKey::open_or_make(&uri("pkcs11:token=kms")).unwrap_err();
    assert!(matches!(nameless, TokenError::Nameless));
}

/// A session of this test's own.
fn session() -> Session {
    let module = Pkcs11::new(MODULE).unwrap();
    // The crate under test has begun it.
    let slot = *module
        .get_slots_with_initialized_token()
        .unwrap()
        .first()
        .unwrap();
    let session = module.open_rw_session(slot).unwrap();
    session
        .login(UserType::User, Some(&AuthPin::new("1234".into())))
        .unwrap();
    session
}

#[test]
fn a_key_that_could_leave_the_token_is_refused() {
    if !has_token("a_key_that_could_leave_the_token_is_refused") {
        return;
    }
    drop(SecretKey::open_or_make(&uri("pkcs11:object=good")).unwrap());
    let session = session();
    for (label, extractable, sensitive) in [("out", true, true), ("seen", false, false)] {
        let template = [
            Attribute::Label(label.into()),
            Attribute::ValueLen(32.into()),
            Attribute::Token(true),
            Attribute::Sign(true),
            Attribute::Extractable(extractable),
            Attribute::Sensitive(sensitive),
        ];
        session
            .generate_key(&Mechanism::GenericSecretKeyGen, &template)
            .unwrap();
        let refused = SecretKey::open(&uri(&format!("pkcs11:object={label}"))).unwrap_err();
        assert!(
            matches!(refused, TokenError::Extractable),
            "{label}: {refused}"
        );
    }
}

#[test]
fn a_token_that_is_not_there_and_a_pin_that_is_wrong_are_told_apart() {
    if !has_token("a_token_that_is_not_there_and_a_pin_that_is_wrong_are_told_apart") {
        return;
    }
    let missing = SecretKey::open(&uri("pkcs11:token=other;object=x")).unwrap_err();
    assert!(missing.is_absence(), "{missing}");
    assert!(
        missing.to_string().contains("pkcs11:token=other;object=x"),
        "{missing}"
    );
    let wrong = SecretKey::open(&uri("pkcs11:token=kms?pin-value=4321")).unwrap_err();
    assert!(
        matches!(wrong, TokenError::WrongPin) && !wrong.is_absence(),
        "{wrong}"
    );
}
