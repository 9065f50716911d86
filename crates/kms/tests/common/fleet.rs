//! Nodes on one database, load on all of them, and what must be true afterwards.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::postgres::Postgres;
use super::{Client, Server};

pub(crate) const ARGUMENTS: [&str; 3] = ["--listen", "127.0.0.1:0", "--dev"];

/// Nodes of one database, each with a data directory of its own and the same root key.
pub(crate) struct Fleet {
    pub(crate) nodes: Vec<Server>,
    /// The servers of the database; the first is the one that is written at the start.
    pub(crate) urls: Vec<String>,
    pub(crate) directories: Vec<tempfile::TempDir>,
}

impl Fleet {
    /// Nodes of a new database.
    pub(crate) fn new(postgres: &Postgres, name: &str, count: usize) -> Self {
        Self::on(&[postgres.database(name)], count)
    }

    /// Nodes of a database that is on several servers.
    pub(crate) fn on(urls: &[String], count: usize) -> Self {
        let directories: Vec<_> = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut nodes = Vec::new();
        for directory in &directories {
            let root = directory.path().join("root.key");
            if let Some(first) = directories.first().filter(|_| !nodes.is_empty()) {
                std::fs::copy(first.path().join("root.key"), &root).unwrap();
            }
            nodes.push(node(directory.path(), urls));
        }
        Self {
            nodes,
            urls: urls.to_vec(),
            directories,
        }
    }

    pub(crate) fn client(&self, node: usize) -> Client {
        self.nodes[node].client()
    }

    /// Ends a node as a power cut would and starts it again.
    pub(crate) fn restart(&mut self, node: usize) {
        self.nodes.remove(node).kill();
        let started = self::node(self.directories[node].path(), &self.urls);
        self.nodes.insert(node, started);
    }

    pub(crate) fn check_trail(&self) {
        let output = self.nodes[0].tool(&["audit", "verify"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}

/// A node of its own directory.
pub(crate) fn node(data: &Path, urls: &[String]) -> Server {
    let (first, others) = urls.split_first().unwrap();
    let others = others.iter().flat_map(|url| ["--database", url]);
    let arguments: Vec<&str> = ARGUMENTS.into_iter().chain(others).collect();
    Server::start_on(data, Some(first.clone()), &arguments)
}

/// Keys that were acknowledged, by description and id.
pub(crate) type Acknowledged = Arc<Mutex<Vec<(String, String)>>>;

/// Makes keys at all nodes until it is told to stop; a failure is asked for again under another name.
pub(crate) fn load(
    fleet: &Fleet,
    acknowledged: &Acknowledged,
    stop: &Arc<AtomicBool>,
    round: usize,
) -> Load {
    let count = fleet.nodes.len();
    let writers = (0..count * 2).map(|writer| {
        let client = fleet.client(writer % count);
        let (acknowledged, stop) = (Arc::clone(acknowledged), Arc::clone(stop));
        std::thread::spawn(move || {
            for step in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let name = format!("{round}-{writer}-{step}");
                let input = json!({ "Description": name });
                let Some(reply) = client.try_call("CreateKey", &input) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                if reply.status == 200 {
                    let id = reply.body["KeyMetadata"]["KeyId"].as_str().unwrap();
                    acknowledged.lock().unwrap().push((name, id.to_owned()));
                } else {
                    let kind = reply.error_type();
                    assert_eq!((reply.status, kind), (500, "DependencyTimeoutException"));
                }
            }
        })
    });
    Load(writers.collect())
}

pub(crate) struct Load(Vec<std::thread::JoinHandle<()>>);

impl Load {
    pub(crate) fn end(self) {
        for writer in self.0 {
            writer.join().unwrap();
        }
    }
}

pub(crate) fn wait_for_more(acknowledged: &Acknowledged, more: usize) {
    let count = || acknowledged.lock().unwrap().len();
    let (wanted, deadline) = (count() + more, Instant::now() + Duration::from_secs(60));
    while count() < wanted {
        assert!(Instant::now() < deadline, "no keys are made");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Everything acknowledged is there and usable, nothing was made twice, and the audit trail is whole.
pub(crate) fn check(fleet: &Fleet, acknowledged: &Acknowledged, postgres: &Postgres, name: &str) {
    let acknowledged = acknowledged.lock().unwrap();
    let client = fleet.client(0);
    for (description, id) in acknowledged.iter() {
        let shown = client.call("DescribeKey", json!({ "KeyId": id })).ok();
        assert_eq!(shown["KeyMetadata"]["Description"], json!(description));
    }
    if let Some((_, id)) = acknowledged.last() {
        client.encrypt(id, b"still usable", json!({}));
    }
    let twice = "SELECT count(*) FROM (SELECT description FROM keys GROUP BY description HAVING count(*) > 1) AS twice";
    assert_eq!(postgres.psql(name, twice), "0");
    // Calls that failed have events too.
    let events = "SELECT count(*) FROM audit WHERE operation = 'CreateKey' AND error_code IS NULL";
    let keys = "SELECT count(*) FROM keys";
    assert_eq!(postgres.psql(name, events), postgres.psql(name, keys));
    fleet.check_trail();
}
