//! The root key protected by a key in a PKCS#11 token: SoftHSM's, through its library. `cargo xtask test` installs it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::postgres::Postgres;
use common::token::{Host, MODULE, done, kept, opens, wait_until, wait_until_sealed};
use serde_json::json;

const SERVE: [&str; 4] = ["serve", "--listen", "127.0.0.1:0", "--dev"];

#[test]
fn a_token_protects_the_root_key() {
    let host = Host::new();
    let node = host.this();
    let root = host.uri("root");
    let protect = ["root", "protect", "--token", &root];
    node.refused(&host.all(), &protect, 6, "0 generic secret keys match");
    assert!(!node.data.join("root.key").exists());
    let make = [&protect[..], &["--make-token-key"]].concat();
    assert_eq!(node.done(&make), "made, protected by token\n");
    // The file says which key it is, and neither a library nor a PIN.
    let stored = node.root_key();
    assert!(
        stored.contains("\"pkcs11:token=kms;object=root\""),
        "{stored}"
    );
    for secret in ["softhsm", "1234", "/pin"] {
        assert!(!stored.contains(secret), "{stored}");
    }
    let shown = node.done(&["root", "show"]);
    assert_eq!(
        shown,
        "protected by token, pkcs11:token=kms;object=root\nversion 1 current\n"
    );

    let mut server = node.serve();
    let client = server.client();
    let blob = kept(&client);
    // The token is asked once: from here on the server needs it no more.
    std::fs::rename(host.path("tokens"), host.path("away")).unwrap();
    opens(&client, &blob);
    opens(&client, &kept(&client));
    std::fs::rename(host.path("away"), host.path("tokens")).unwrap();
    // A new version of the root key neither.
    node.done(&["root", "rotate"]);
    wait_until_sealed(&server, 2);
    opens(&client, &blob);
    assert_eq!(server.stop(), Some(0));
    node.done(&["audit", "verify"]);
    opens(&node.serve().client(), &blob);
}

#[test]
fn what_does_not_open_is_told_with_a_status_of_its_own() {
    let host = Host::new();
    let node = host.this();
    node.protect_anew("root");
    drop(host.node("else").protect_anew("other"));
    let found = host.variables("pin");
    node.refused(
        &host.variables("wrong"),
        &SERVE,
        6,
        "refuses to log in with this PIN",
    );
    node.refused(
        &host.variables("none"),
        &SERVE,
        6,
        "cannot read the PIN from",
    );
    node.refused(&found[..2].to_vec(), &SERVE, 6, "no PIN is named");
    node.refused(&found[..1].to_vec(), &SERVE, 6, "ENCLOS_PKCS11_MODULE");
    // The environment will do too.
    let pin = ("ENCLOS_PKCS11_PIN", PathBuf::from("1234"));
    done(&node.tool(&[&found[..2], &[pin]].concat(), &["root", "show"]));

    let library = ("ENCLOS_PKCS11_MODULE", host.path("none.so"));
    node.refused(
        &[&found[..1], &[library], &found[2..]].concat(),
        &SERVE,
        7,
        "none.so",
    );
    std::fs::rename(host.path("tokens"), host.path("away")).unwrap();
    std::fs::create_dir(host.path("tokens")).unwrap();
    node.refused(
        &found,
        &SERVE,
        7,
        "0 tokens match `pkcs11:token=kms;object=root`",
    );
    std::fs::remove_dir(host.path("tokens")).unwrap();
    std::fs::rename(host.path("away"), host.path("tokens")).unwrap();

    let path = node.data.join("root.key");
    let stored = node.root_key();
    let named = |name: &str| std::fs::write(&path, stored.replace("object=root", name)).unwrap();
    named("object=other");
    node.refused(
        &found,
        &SERVE,
        6,
        "the token is not the one that it was protected with",
    );
    named("object=gone");
    node.refused(&found, &SERVE, 6, "0 generic secret keys match");
    named("object=root?module-path=/tmp/other.so");
    node.refused(&found, &SERVE, 1, "named with more than which key it is");
    named("object=root");
    done(&node.tool(&found, &["root", "show"]));
}

#[test]
fn a_root_key_moves_between_file_passphrase_and_tokens_under_load() {
    let host = Host::new();
    let node = host.this();
    let server = node.serve();
    let client = server.client();
    let blob = kept(&client);
    let (first, second, passphrase) = (
        host.uri("first"),
        host.uri("second"),
        host.text("passphrase"),
    );
    let steps: [(&[&str], &str); 5] = [
        (&["--token", &first, "--make-token-key"], "token"),
        (&["--token", &second, "--make-token-key"], "token"),
        (&["--passphrase-file", &passphrase], "passphrase"),
        (&["--token", &first], "token"),
        (&["--file-mode"], "file mode"),
    ];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut made = vec![blob.clone()];
            while !stop.load(Ordering::Relaxed) {
                made.push(kept(&client));
                made.iter().for_each(|blob| opens(&client, blob));
            }
            made
        });
        for (version, (by, name)) in (2..).zip(steps) {
            let printed = node.done(&[&["root", "protect"], by].concat());
            assert_eq!(printed, format!("protected by {name}\n"));
            node.done(&["root", "rotate"]);
            // The server has no passphrase: it goes on with what it knew, and says so.
            match name {
                "passphrase" => wait_until(&server, |log| log.contains("and none was given")),
                _ => wait_until_sealed(&server, version),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let made = load.join().unwrap();
        drop(server);
        let again = node.serve();
        made.iter().for_each(|blob| opens(&again.client(), blob));
    });
    let shown = node.done(&["root", "show"]);
    assert!(shown.starts_with("protected by file mode\n"), "{shown}");
}

/// Tokens lock after a few wrong PINs, so a server that looks at the file again and again must not try again and again.
#[test]
fn a_running_server_tries_a_wrong_pin_once() {
    let host = Host::new();
    let node = host.this();
    let right = host.variables("pin");
    std::fs::rename(host.path("pin"), host.path("right")).unwrap();
    std::fs::copy(host.path("wrong"), host.path("pin")).unwrap();
    let server = node.serve();
    let client = server.client();
    let blob = kept(&client);
    let root = host.uri("root").replace("/pin", "/right");
    let with_right = host.variables("right");
    done(&node.tool(
        &with_right,
        &["root", "protect", "--token", &root, "--make-token-key"],
    ));
    let tries = |log: &str| log.matches("refuses to log in with this PIN").count();
    wait_until(&server, |log| tries(log) > 0);
    // Longer than it takes to look at the file twice.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(tries(&server.log()), 1, "{}", server.log());
    opens(&client, &blob);
    std::fs::rename(host.path("right"), host.path("pin")).unwrap();
    done(&node.tool(&right, &["root", "rotate"]));
    wait_until_sealed(&server, 2);
    assert_eq!(tries(&server.log()), 1, "{}", server.log());
    opens(&client, &blob);
}

#[test]
fn a_copy_opens_a_backup_when_the_token_is_lost() {
    let host = Host::new();
    let node = host.this();
    node.protect_anew("root");
    let mut server = node.serve();
    let blob = kept(&server.client());
    let (copy, backup, passphrase) = (
        host.text("copy"),
        host.text("backup"),
        host.text("passphrase"),
    );
    let by = ["--passphrase-file", &passphrase];
    let copied = node.done(&[&["root", "copy", "--to", &copy], &by[..]].concat());
    assert_eq!(copied, "copied, protected by passphrase\n");
    node.refused(
        &host.all(),
        &[&["root", "copy", "--to", &copy], &by[..]].concat(),
        1,
        "exists",
    );
    node.done(&["backup", "--to", &backup]);
    assert_eq!(server.stop(), Some(0));
    let trail = node.done(&["audit", "--json"]);
    assert!(trail.contains("CopyRootKey"), "{trail}");
    std::fs::remove_dir_all(host.path("tokens")).unwrap();
    node.refused(&host.variables("pin"), &SERVE, 7, "libsofthsm2.so");

    let lost = Host {
        database: None,
        ..host
    };
    let node = lost.node("restored");
    std::fs::rename(lost.path("copy"), node.data.join("root.key")).unwrap();
    node.done(&["restore", &backup]);
    node.done(&["root", "protect", "--file-mode"]);
    opens(&node.serve().client(), &blob);
}

/// Each node has a key of its own in the token, and none can open another's file.
#[test]
fn nodes_of_a_fleet_rotate_under_keys_of_their_own() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let host = Host {
        database: Some(server.database("fleet")),
        ..Host::new()
    };
    let (a, b) = (host.node("a"), host.node("b"));
    a.protect_anew("a");
    let give = || {
        let given = host.text("given");
        a.done(&[
            "root",
            "copy",
            "--to",
            &given,
            "--passphrase-file",
            &host.text("passphrase"),
        ]);
        std::fs::rename(host.path("given"), b.data.join("root.key")).unwrap();
        b.protect_anew("b");
    };
    give();
    assert!(b.root_key().contains("object=b") && !b.root_key().contains("object=a"));
    let (on_a, on_b) = (a.serve(), b.serve());
    let (client_a, client_b) = (on_a.client(), on_b.client());
    let blobs = [kept(&client_a), kept(&client_b)];
    a.done(&["root", "rotate", "--prepare"]);
    give();
    a.done(&["root", "rotate"]);
    wait_until_sealed(&on_a, 2);
    give();
    a.done(&["root", "retire", "--version", "1"]);
    give();
    // Until it has taken up the file, what the node would store is refused.
    let deadline = Instant::now() + Duration::from_secs(60);
    while client_b.call("CreateKey", json!({})).status != 200 {
        assert!(Instant::now() < deadline, "{}", on_b.log());
    }
    let newest = [kept(&client_a), kept(&client_b)];
    for blob in blobs.iter().chain(&newest) {
        opens(&client_a, blob);
        opens(&client_b, blob);
    }
    drop((on_a, on_b));
    let (client_a, client_b) = (a.serve(), b.serve());
    for blob in blobs.iter().chain(&newest) {
        opens(&client_a.client(), blob);
        opens(&client_b.client(), blob);
    }
}

#[test]
fn a_pin_on_the_command_line_is_refused() {
    let host = Host::new();
    let node = host.this();
    let uri = format!("pkcs11:token=kms;object=root?module-path={MODULE}&pin-value=1234");
    let protect = ["root", "protect", "--token", &uri];
    node.refused(
        &host.all(),
        &protect,
        2,
        "everyone on this machine can read",
    );
    let protect = ["root", "protect", "--token", "pkcs12:x"];
    node.refused(&host.all(), &protect, 2, "is no pkcs11: URI");
    let nameless = [
        "root",
        "protect",
        "--make-token-key",
        "--token",
        "pkcs11:token=kms",
    ];
    node.refused(&host.all(), &nameless, 6, "a new key needs a name");
    let alone = ["root", "protect", "--file-mode", "--make-token-key"];
    node.refused(&host.all(), &alone, 2, "cannot be used with");
    assert!(!node.data.join("root.key").exists());
}
