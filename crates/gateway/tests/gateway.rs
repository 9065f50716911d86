//! The whole gateway against a hypervisor that the test plays.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use enclos_api::config::{HostConfig, Instance, KmsAddress};
use enclos_api::control::{
    self, BootTimes, Enclave, Event, Exit, Measurements, Reply as HypervisorReply, State, Success,
};
use enclos_api::gateway::{Publication, Reply, Request};
use enclos_api::guest::{FactsReply, FactsRequest};
use enclos_gateway::{registry::port_path, server, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(20);

struct World {
    run: tempfile::TempDir,
    hypervisor: UnixListener,
    gateway: tokio::task::JoinHandle<()>,
    kms: TcpListener,
}

impl World {
    async fn new() -> Self {
        let run = tempfile::tempdir().unwrap();
        let hypervisor = UnixListener::bind(run.path().join(control::SOCKET_NAME)).unwrap();
        let kms = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = gateway(&kms, run.path());
        Self {
            run,
            hypervisor,
            gateway,
            kms,
        }
    }

    /// Ends the gateway without a word, as SIGKILL does, and starts another.
    async fn restart(&mut self) {
        self.gateway.abort();
        assert!((&mut self.gateway).await.unwrap_err().is_cancelled());
        self.gateway = gateway(&self.kms, self.run.path());
    }

    /// Plays the hypervisor's side of a new watch: the stream of events.
    async fn watched(&self, enclaves: &[Enclave]) -> UnixStream {
        let (mut watch, _) = timeout(LIMIT, self.hypervisor.accept())
            .await
            .unwrap()
            .unwrap();
        let request: control::Request = wire::read_soon(&mut watch).await.unwrap();
        assert_eq!(request, control::Request::Watch);
        wire::write(&mut watch, &HypervisorReply::Ok(Success::Streaming))
            .await
            .unwrap();
        let (mut describe, _) = timeout(LIMIT, self.hypervisor.accept())
            .await
            .unwrap()
            .unwrap();
        let request: control::Request = wire::read_soon(&mut describe).await.unwrap();
        assert_eq!(request, control::Request::Describe);
        // One each, to be put together; the empty piece is the end.
        for piece in enclaves.chunks(1).chain([&[][..]]) {
            let reply = HypervisorReply::Ok(Success::Enclaves(piece.to_vec()));
            wire::write(&mut describe, &reply).await.unwrap();
        }
        watch
    }

    async fn ask(&self, request: &Request) -> Reply {
        let path = self.run.path().join(enclos_api::gateway::SOCKET_NAME);
        let mut stream = connect(&path).await;
        wire::write(&mut stream, request).await.unwrap();
        timeout(LIMIT, wire::read(&mut stream))
            .await
            .unwrap()
            .unwrap()
    }

    fn enclave(&self, id: &str) -> Enclave {
        let vsock = self.run.path().join(id);
        std::fs::create_dir_all(&vsock).unwrap();
        enclave(id, vsock.join("vsock.sock"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.gateway.abort();
    }
}

fn gateway(kms: &TcpListener, run: &Path) -> tokio::task::JoinHandle<()> {
    let (host, dir) = (host(kms), run.to_path_buf());
    tokio::spawn(async move { server::serve(host, &dir).await.unwrap() })
}

fn host(kms: &TcpListener) -> HostConfig {
    HostConfig {
        instance: Instance {
            id: "i-0123456789abcdef0".into(),
            region: "eu-west-3".into(),
            availability_zone: "eu-west-3a".into(),
            account_id: "000000000000".into(),
        },
        role: None,
        kms: Some(KmsAddress {
            address: kms.local_addr().unwrap(),
        }),
    }
}

fn enclave(id: &str, vsock: PathBuf) -> Enclave {
    Enclave {
        id: id.into(),
        name: "test".into(),
        pid: 1,
        cid: 16,
        cpu_ids: vec![0],
        cpu_count: 1,
        memory_mib: 64,
        state: State::Running,
        debug: false,
        measurements: Measurements::default(),
        image: serde_json::Value::Null,
        vsock,
        owner_uid: rustix::process::geteuid().as_raw(),
        boot: BootTimes::default(),
    }
}

/// Connects to a socket that is about to exist.
async fn connect(path: &Path) -> UnixStream {
    let connect = async {
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return stream,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(LIMIT, connect).await.unwrap()
}

async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap();
}

fn publication(id: &str, listen: &str) -> Publication {
    Publication {
        enclave_id: id.into(),
        listen: listen.parse().unwrap(),
        guest_port: 5000,
    }
}

async fn publish(world: &World, id: &str) -> Publication {
    let request = Request::Publish(publication(id, "127.0.0.1:0"));
    let Reply::Ok(published) = world.ask(&request).await else {
        panic!("not published")
    };
    published.into_iter().next().unwrap()
}

#[tokio::test]
async fn an_enclave_gets_facts_and_a_tunnel_and_loses_them_with_its_end() {
    let world = World::new().await;
    let mut events = world.watched(&[]).await;
    let enclave = world.enclave("i-1-enc1");
    wire::write(&mut events, &Event::Added(Box::new(enclave.clone())))
        .await
        .unwrap();

    let facts_path = port_path(&enclave.vsock, 9002);
    let mut facts = connect(&facts_path).await;
    wire::write(&mut facts, &FactsRequest::Facts).await.unwrap();
    let FactsReply::Ok(answer) = wire::read_soon(&mut facts).await.unwrap() else {
        panic!()
    };
    assert_eq!(answer.instance_id, "i-0123456789abcdef0");

    let kms_path = port_path(&enclave.vsock, 8000);
    let mut tunnel = connect(&kms_path).await;
    tunnel.write_all(b"opaque").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let (mut served, _) = timeout(LIMIT, world.kms.accept()).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    timeout(LIMIT, served.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(bytes, b"opaque");

    let exit = Exit {
        id: enclave.id.clone(),
        name: "test".into(),
        status: Some(0),
        signal: None,
        reason: "ended".into(),
    };
    wire::write(&mut events, &Event::Removed(exit))
        .await
        .unwrap();
    until(|| !facts_path.exists() && !kms_path.exists()).await;
}

#[tokio::test]
async fn an_enclave_has_so_many_ports_and_no_more() {
    let world = World::new().await;
    let mut hypervisor = world.watched(&[]).await;
    let added = Event::Added(Box::new(world.enclave("i-1-enc3")));
    wire::write(&mut hypervisor, &added).await.unwrap();
    for _ in 0..32 {
        publish(&world, "i-1-enc3").await;
    }
    let one_more = Request::Publish(publication("i-1-enc3", "127.0.0.1:0"));
    let Reply::Error(failure) = world.ask(&one_more).await else {
        panic!("published")
    };
    assert!(failure.message.contains("32 ports"), "{failure}");
}

#[tokio::test]
async fn a_published_port_leads_into_the_enclave_until_it_ends() {
    let world = World::new().await;
    let mut events = world.watched(&[]).await;
    let enclave = world.enclave("i-1-enc2");
    let device = UnixListener::bind(&enclave.vsock).unwrap();
    // Asked for before the hypervisor's word has arrived, as a fast client does.
    let early = publish(&world, "i-1-enc2");
    let added = async {
        sleep(Duration::from_millis(200)).await;
        let event = Event::Added(Box::new(enclave.clone()));
        wire::write(&mut events, &event).await.unwrap();
    };
    let (published, ()) = tokio::join!(early, added);
    assert_eq!(
        world.ask(&Request::List).await,
        Reply::Ok(vec![published.clone()])
    );

    let mut client = TcpStream::connect(published.listen).await.unwrap();
    let (mut guest, _) = timeout(LIMIT, device.accept()).await.unwrap().unwrap();
    let mut line = [0; 13];
    guest.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"CONNECT 5000\n");
    guest.write_all(b"OK 1\nhello").await.unwrap();
    let mut hello = [0; 5];
    timeout(LIMIT, client.read_exact(&mut hello))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&hello, b"hello");

    let busy = Request::Publish(publication("i-1-enc2", &published.listen.to_string()));
    let Reply::Error(failure) = world.ask(&busy).await else {
        panic!("a busy port was taken")
    };
    assert_eq!(failure.code, 11);
    assert!(failure.message.contains("in use"), "{failure}");

    drop(events);
    drop(world.watched(&[]).await);
    until(|| std::net::TcpStream::connect(published.listen).is_err()).await;
    assert_eq!(world.ask(&Request::List).await, Reply::Ok(vec![]));
}

#[tokio::test]
async fn a_restarted_gateway_publishes_again_what_still_runs() {
    let mut world = World::new().await;
    let mut events = world.watched(&[]).await;
    let enclaves = ["i-1-enc4", "i-1-enc5"].map(|id| world.enclave(id));
    for enclave in &enclaves {
        let added = Event::Added(Box::new(enclave.clone()));
        wire::write(&mut events, &added).await.unwrap();
    }
    let stays = publish(&world, "i-1-enc4").await;
    let goes = publish(&world, "i-1-enc5").await;
    world.restart().await;
    // One of the two ended meanwhile.
    let mut events = world.watched(&enclaves[..1]).await;
    let added = Event::Added(Box::new(enclaves[0].clone()));
    wire::write(&mut events, &added).await.unwrap();
    until(|| std::net::TcpStream::connect(stays.listen).is_ok()).await;
    assert!(std::net::TcpStream::connect(goes.listen).is_err());
    assert_eq!(world.ask(&Request::List).await, Reply::Ok(vec![stays]));
}

#[tokio::test]
async fn enclaves_stay_served_while_the_hypervisor_is_away() {
    let world = World::new().await;
    let mut events = world.watched(&[]).await;
    let enclave = world.enclave("i-1-enc3");
    wire::write(&mut events, &Event::Added(Box::new(enclave.clone())))
        .await
        .unwrap();
    let path = port_path(&enclave.vsock, 9002);
    drop(connect(&path).await);
    drop(events);
    let mut events = world.watched(std::slice::from_ref(&enclave)).await;
    wire::write(&mut events, &Event::Added(Box::new(enclave)))
        .await
        .unwrap();
    drop(connect(&path).await);
}

#[tokio::test]
async fn bad_requests_get_a_code_and_a_message() {
    let world = World::new().await;
    let _events = world.watched(&[]).await;
    let unknown = Request::Publish(publication("i-1-enc9", "127.0.0.1:0"));
    let Reply::Error(failure) = world.ask(&unknown).await else {
        panic!()
    };
    assert_eq!(failure.code, 40);
    let mut zero = publication("i-1-enc9", "127.0.0.1:0");
    zero.guest_port = 0;
    let Reply::Error(failure) = world.ask(&Request::Publish(zero)).await else {
        panic!()
    };
    assert_eq!(failure.code, 3);
    let path = world.run.path().join(enclos_api::gateway::SOCKET_NAME);
    let mut stream = connect(&path).await;
    wire::write(&mut stream, &"nonsense").await.unwrap();
    let Reply::Error(failure) = wire::read_soon(&mut stream).await.unwrap() else {
        panic!()
    };
    assert_eq!(failure.code, 14);
}
