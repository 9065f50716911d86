//! Tokens that do not answer, and tokens that are locked: nothing else waits for them, and they are not asked again and again. A library of
//! our own before SoftHSM's plays them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::postgres::{Postgres, is_the_store};
use common::token::{Host, MODULE, Node, Variables, kept, opens, wait_until};
use common::{BINARY, Client, Reply, Server, WITH_READINESS, readiness, until};
use serde_json::{Value, json};

const SILENT: &str = "has not answered within 5 s";

/// A host whose servers reach the token through our library.
struct Faulty {
    host: Host,
    library: PathBuf,
}

impl Faulty {
    fn new(database: Option<String>) -> Self {
        let host = Host::new();
        let database = database.or_else(|| host.database.clone());
        let host = Host { database, ..host };
        let library = host.path("faulty.so");
        common::library("faulty_token.c", &library);
        Self { host, library }
    }

    /// For the servers; tools that change something reach the token as it is.
    fn variables(&self) -> Variables {
        let faults = vec![
            ("ENCLOS_PKCS11_MODULE", self.library.clone()),
            ("FAULTY_TOKEN", self.host.directory.path().to_owned()),
            ("FAULTY_TOKEN_OF", MODULE.into()),
        ];
        [self.host.variables("pin"), faults].concat()
    }

    fn serve(&self, node: &Node<'_>) -> Server {
        let variables = self.variables();
        let variables: Vec<(&str, &Path)> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_path()))
            .collect();
        let database = self.host.database.clone();
        Server::launch(&node.data, database, &WITH_READINESS, &variables)
    }

    /// A server that is about to start.
    fn starting(&self, node: &Node<'_>) -> Child {
        let database = self.host.database.iter();
        Command::new(BINARY)
            .args(["serve", "--data"])
            .arg(&node.data)
            .args(WITH_READINESS)
            .args(database.flat_map(|url| ["--database", url]))
            .envs(self.variables())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn set(&self, fault: &str) {
        std::fs::write(self.host.path(fault), "").unwrap();
    }

    fn clear(&self, fault: &str) {
        std::fs::remove_file(self.host.path(fault)).unwrap();
    }

    fn logins(&self) -> usize {
        let logins = std::fs::read_to_string(self.host.path("logins"));
        logins.unwrap_or_default().lines().count()
    }
}

/// A new access key, sealed under what the file says by now.
fn newcomer(node: &Node<'_>, server: &Server) -> Client {
    let arn = "arn:aws:iam::000000000000:root";
    let printed = node.done(&["principal", "add", "--arn", arn]);
    let made: Value = serde_json::from_str(&printed).unwrap();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let (id, secret) = (text("AccessKeyId"), text("SecretAccessKey"));
    Client::new(server.http.unwrap(), &id, &secret)
}

fn is_told_to_try_again(reply: &Reply) {
    let (kind, text) = reply.error();
    assert_eq!((reply.status, kind), (500, "DependencyTimeoutException"));
    assert!(text.contains("You can retry the request"), "{text}");
}

#[test]
fn a_token_that_does_not_answer_holds_up_nothing() {
    let faulty = Faulty::new(None);
    let node = faulty.host.this();
    let mut server = faulty.serve(&node);
    let client = server.client();
    let blob = kept(&client);
    assert!(readiness(&server).ends_with("ready\n"));
    faulty.set("hang");
    node.protect_anew("root");
    node.done(&["root", "rotate"]);
    let newcomer = newcomer(&node, &server);
    wait_until(&server, |log| log.contains(SILENT));
    let said = readiness(&server);
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    assert!(said.contains("ready, but root.key was changed"), "{said}");
    assert!(server.metrics().contains("enclos_kms_root_key_unread 1"));

    // More at once than there are threads, for what stands under the new version; and the others go on.
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| newcomer.call("ListKeys", json!({}))))
            .collect();
        for _ in 0..20 {
            opens(&client, &blob);
            opens(&client, &kept(&client));
        }
        for reply in waiting {
            is_told_to_try_again(&reply.join().unwrap());
        }
    });
    let said = readiness(&server);
    assert!(said.starts_with("HTTP/1.1 503 "), "{said}");
    assert!(
        said.contains("something stored does not open without it"),
        "{said}"
    );
    assert_eq!(faulty.logins(), 1, "{}", server.log());

    // The answer to that one question counts when it comes.
    faulty.clear("hang");
    until("the access key is not known", || {
        (newcomer.call("ListKeys", json!({})).status == 200).then_some(())
    });
    assert!(readiness(&server).ends_with("ready\n"));
    assert!(server.metrics().contains("enclos_kms_root_key_unread 0"));
    opens(&client, &blob);
    assert_eq!(faulty.logins(), 1, "{}", server.log());
    assert_eq!(server.stop(), Some(0));
}

/// A start waits longer, and gives up; a running server that hangs in the token ends when it is told to.
#[test]
fn starts_and_ends_do_not_wait_for_a_token_for_ever() {
    if is_the_store() {
        return;
    }
    let faulty = Faulty::new(None);
    let node = faulty.host.this();
    let mut server = faulty.serve(&node);
    let blob = kept(&server.client());
    faulty.set("hang");
    node.protect_anew("root");
    until("the token is not asked", || {
        (faulty.logins() > 0).then_some(())
    });
    assert_eq!(server.stop(), Some(0));
    let ended = faulty.starting(&node).wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(7), "{said}");
    assert!(said.contains("has not answered within 30 s"), "{said}");
    faulty.clear("hang");
    opens(&faulty.serve(&node).client(), &blob);
}

/// SoftHSM locks no PIN, so our library says that it has.
#[test]
fn a_locked_pin_is_told_and_not_tried_again() {
    if is_the_store() {
        return;
    }
    let faulty = Faulty::new(None);
    let node = faulty.host.this();
    let server = faulty.serve(&node);
    let client = server.client();
    let blob = kept(&client);
    faulty.set("locked");
    node.protect_anew("root");
    let told = |log: &str| {
        log.matches("have its security officer set a new one")
            .count()
    };
    wait_until(&server, |log| told(log) > 0);
    // Longer than it takes to look at the file twice.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((faulty.logins(), told(&server.log())), (1, 1));
    assert!(readiness(&server).contains("ready, but root.key was changed"));
    opens(&client, &blob);
    // A start tries once too, and says so with the status on which systemd does not start again.
    let elsewhere = faulty.host.node("elsewhere");
    std::fs::copy(node.data.join("root.key"), elsewhere.data.join("root.key")).unwrap();
    let ended = faulty.starting(&elsewhere).wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(6), "{said}");
    assert_eq!(told(&said), 1, "{said}");
    assert_eq!(faulty.logins(), 2);

    faulty.clear("locked");
    node.done(&["root", "rotate"]);
    until("the file is not taken up", || {
        readiness(&server).ends_with("ready\n").then_some(())
    });
    assert_eq!(faulty.logins(), 3, "{}", server.log());
    opens(&client, &blob);
}

/// What another node stores meanwhile is not known here yet, which is not the same as that it does not exist.
#[test]
fn a_key_that_does_not_open_yet_is_not_missing() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let faulty = Faulty::new(Some(postgres.database("fleet")));
    let (a, b) = (faulty.host.node("a"), faulty.host.node("b"));
    let on_a = a.serve();
    std::fs::copy(a.data.join("root.key"), b.data.join("root.key")).unwrap();
    let on_b = faulty.serve(&b);
    let (client_a, client_b) = (on_a.client(), on_b.client());
    let old = kept(&client_a);
    opens(&client_b, &old);
    faulty.set("hang");
    a.done(&["root", "rotate"]);
    // Made elsewhere, so that the node never sees the new version unprotected.
    let elsewhere = faulty.host.node("elsewhere");
    std::fs::copy(a.data.join("root.key"), elsewhere.data.join("root.key")).unwrap();
    elsewhere.protect_anew("b");
    std::fs::rename(elsewhere.data.join("root.key"), b.data.join("root.key")).unwrap();
    let key = until("the new version is not used", || {
        let key = client_a.create_key();
        let told = client_b.call("DescribeKey", json!({ "KeyId": key }));
        (told.status != 200).then(|| {
            is_told_to_try_again(&told);
            key
        })
    });
    let alias = json!({ "AliasName": "alias/new", "TargetKeyId": key });
    client_a.call("CreateAlias", alias).ok();
    let grant = json!({ "KeyId": key, "GranteePrincipal": "arn:aws:iam::000000000000:role/r",
        "Operations": ["Decrypt"] });
    client_a.call("CreateGrant", grant).ok();
    for name in [key.as_str(), "alias/new"] {
        let input = json!({ "KeyId": name, "Plaintext": "eA==" });
        is_told_to_try_again(&client_b.call("Encrypt", input));
    }
    let new = client_a.encrypt(&key, b"kept", json!({}));
    is_told_to_try_again(&client_b.decrypt(&new, json!({})));
    opens(&client_b, &old);
    assert!(readiness(&on_b).starts_with("HTTP/1.1 503 "));

    faulty.clear("hang");
    let asked = json!({ "KeyId": key });
    until("the key stays away", || {
        (client_b.call("DescribeKey", asked.clone()).status == 200).then_some(())
    });
    let grants = client_b.call("ListGrants", asked).ok();
    assert_eq!(grants["Grants"].as_array().unwrap().len(), 1);
    client_b.encrypt("alias/new", b"x", json!({}));
    opens(&client_b, &new);
    assert!(readiness(&on_b).ends_with("ready\n"));
    let missing = json!({ "KeyId": "alias/none" });
    let missing = client_b.call("DescribeKey", missing);
    assert_eq!(missing.error_type(), "NotFoundException");
}
