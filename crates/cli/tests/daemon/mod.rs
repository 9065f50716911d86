//! Daemons that answer by script, each in a directory of its own, and the binary under test.

#![allow(dead_code, reason = "each test binary uses its own part of it")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use enclos_api::control::{
    BootTimes, Cgroup, Enclave, Host, Measurements, Reply, Request, State, Success,
};
use enclos_api::{control, frame, gateway};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tempfile::TempDir;

/// No test may hang: every command is killed after this time.
const LIMIT: Duration = Duration::from_secs(30);

/// An enclave as a hypervisor would describe it.
pub(crate) fn enclave() -> Enclave {
    let pcr = "c8eaa4091a629e01ccfe00315d88e60da6aa134421708e1982c19c78fd39ea0977c22b9aa9dc76d7b7466bf463c81420";
    Enclave {
        id: "i-1234567890abcdef0-enc191cceb4289903f".to_owned(),
        name: "hello".to_owned(),
        pid: 4711,
        cid: 16,
        cpu_ids: vec![0, 1],
        cpu_count: 2,
        memory_mib: 512,
        state: State::Running,
        debug: false,
        measurements: Measurements {
            pcr0: pcr.into(),
            pcr1: pcr.into(),
            pcr2: pcr.into(),
            pcr8: None,
        },
        image: json!({
            "ImageName": "hello",
            "ImageVersion": "1.0",
            "BuildMetadata": {
                "BuildTime": "2024-01-01T00:00:00+00:00",
                "BuildTool": "enclos",
                "BuildToolVersion": "0.1.0",
                "OperatingSystem": "Linux",
                "KernelVersion": "6.12",
            },
            "DockerInfo": {},
            "CustomMetadata": { "team": "payments", "BuildTool": "not this one" },
        }),
        vsock: "/run/enclos/enclaves/x/vsock.sock".into(),
        owner_uid: 0,
        boot: BootTimes::default(),
    }
}

/// A host as a hypervisor would describe it.
pub(crate) fn host() -> Host {
    Host {
        version: "0.1.0".to_owned(),
        engine: "qemu".to_owned(),
        engine_version: "QEMU emulator version 7.2".to_owned(),
        instance_id: "i-1234567890abcdef0".to_owned(),
        role_arn: None,
        region: "us-east-1".to_owned(),
        root_certificate: "a root certificate".to_owned(),
        memory_total_mib: 1024,
        memory_free_mib: 1024,
        cpu_ids: vec![0, 1],
        cgroup: Cgroup::default(),
    }
}

/// One request, and the content of the file descriptor that came with it.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) request: Request,
    pub(crate) image: Option<Vec<u8>>,
}

#[derive(Default)]
struct Script {
    heard: Vec<Heard>,
    stream: Vec<u8>,
    keep: bool,
}

/// A run directory, with a hypervisor in it or not.
pub(crate) struct Daemon {
    dir: TempDir,
    script: Arc<Mutex<Script>>,
}

impl Daemon {
    /// Nobody listens.
    pub(crate) fn none() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            script: Arc::default(),
        }
    }

    /// Gives one reply to each connection; when they are used up, hangs up.
    pub(crate) fn hypervisor(replies: Vec<Reply>) -> Self {
        let daemon = Self::none();
        let listener = UnixListener::bind(daemon.dir.path().join(control::SOCKET_NAME)).unwrap();
        let script = Arc::clone(&daemon.script);
        thread::spawn(move || {
            let mut replies = VecDeque::from(replies);
            while let Ok((stream, _)) = listener.accept() {
                answer(stream, replies.pop_front(), &script);
            }
        });
        daemon
    }

    /// Answers with something that is no frame.
    pub(crate) fn garbage() -> Self {
        let daemon = Self::none();
        let listener = UnixListener::bind(daemon.dir.path().join(control::SOCKET_NAME)).unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = receive(&mut stream);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        daemon
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        std::mem::take(&mut self.script.lock().unwrap().heard)
    }

    /// Bytes that follow a reply of `Streaming`.
    pub(crate) fn after_streaming(&self, bytes: &[u8]) {
        self.script.lock().unwrap().stream = bytes.to_vec();
    }

    /// Keeps the stream open.
    pub(crate) fn keep_streaming(&self) {
        self.script.lock().unwrap().keep = true;
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn without_paths(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "<run>")
    }

    pub(crate) fn with_gateway(&self, replies: Vec<gateway::Reply>) -> Gateway {
        let listener = UnixListener::bind(self.dir.path().join(gateway::SOCKET_NAME)).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&heard);
        thread::spawn(move || {
            for reply in replies {
                let Ok((mut stream, _)) = listener.accept() else {
                    return;
                };
                requests
                    .lock()
                    .unwrap()
                    .push(frame::read(&mut stream).unwrap());
                let _ = frame::write(&mut stream, &reply);
            }
        });
        Gateway(heard)
    }
}

pub(crate) struct Gateway(Arc<Mutex<Vec<gateway::Request>>>);

impl Gateway {
    pub(crate) fn heard(&self) -> Vec<gateway::Request> {
        self.0.lock().unwrap().clone()
    }
}

/// A client that only asks whether anybody answers hangs up after the first frame, so a failed write ends the reply and
/// not the daemon; what the client made of it is the test's to see.
fn answer(mut stream: UnixStream, reply: Option<Reply>, script: &Mutex<Script>) {
    let Some(heard) = receive(&mut stream) else {
        return;
    };
    script.lock().unwrap().heard.push(heard);
    let Some(reply) = reply else { return };
    let lists = matches!(&reply, Reply::Ok(Success::Enclaves(some)) if !some.is_empty());
    if frame::write(&mut stream, &reply).is_err() {
        return;
    }
    if lists {
        let _ = frame::write(&mut stream, &Reply::Ok(Success::Enclaves(Vec::new())));
    }
    let mut script = script.lock().unwrap();
    if matches!(reply, Reply::Ok(Success::Streaming)) {
        let _ = stream.write_all(&std::mem::take(&mut script.stream));
        if script.keep {
            std::mem::forget(stream);
        }
    }
}

/// Reads one request together with the descriptor on its first byte.
fn receive(stream: &mut UnixStream) -> Option<Heard> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0];
    let got = recvmsg(
        &*stream,
        &mut [IoSliceMut::new(&mut first)],
        &mut control,
        RecvFlags::empty(),
    )
    .ok()?;
    if got.bytes == 0 {
        return None;
    }
    let mut image = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            let mut bytes = Vec::new();
            File::from(fds.next()?).read_to_end(&mut bytes).unwrap();
            image = Some(bytes);
        }
    }
    let request = frame::read(&mut first.as_slice().chain(stream)).ok()?;
    Some(Heard { request, image })
}

/// A command that has ended.
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

/// Runs `enclos`.
pub(crate) fn run(daemon: &Daemon, args: &[&str]) -> Done {
    run_with(daemon, args, &[])
}

/// Runs `enclos` with more variables in its environment.
pub(crate) fn run_with(daemon: &Daemon, args: &[&str], vars: &[(&str, &str)]) -> Done {
    run_program(daemon, env!("CARGO_BIN_EXE_enclos").into(), args, vars)
}

/// Runs the binary by its other name.
pub(crate) fn run_as_nitro_cli(daemon: &Daemon, args: &[&str]) -> Done {
    let link = daemon.dir.path().join("nitro-cli");
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_enclos"), &link).unwrap();
    }
    run_program(daemon, link, args, &[])
}

/// Runs a copy of the binary that has no daemons beside it, and finds none in `PATH`.
pub(crate) fn run_copy(daemon: &Daemon, args: &[&str]) -> Done {
    run_copy_with(daemon, args, &[("PATH", "/usr/bin:/bin")])
}

/// The same with variables in its environment, `PATH` among them.
pub(crate) fn run_copy_with(daemon: &Daemon, args: &[&str], vars: &[(&str, &str)]) -> Done {
    let copy = daemon.dir.path().join("enclos");
    if !copy.exists() && std::fs::hard_link(env!("CARGO_BIN_EXE_enclos"), &copy).is_err() {
        std::fs::copy(env!("CARGO_BIN_EXE_enclos"), &copy).unwrap();
    }
    run_program(daemon, copy, args, vars)
}

fn run_program(daemon: &Daemon, program: PathBuf, args: &[&str], vars: &[(&str, &str)]) -> Done {
    let state = daemon.dir.path().join("state");
    let mut command = Command::new(program);
    command
        .args(args)
        .env_remove("XDG_RUNTIME_DIR")
        .env("NO_COLOR", "1")
        .env("HOME", &state);
    command
        .env("ENCLOS_RUN_DIR", daemon.dir.path())
        .env("ENCLOS_STATE_DIR", &state);
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL_KMS",
    ] {
        command.env_remove(name);
    }
    command.envs(vars.iter().copied());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("{args:?} did not end within {LIMIT:?}");
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    Done {
        status: status.code().unwrap(),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn read_all(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        stream.unwrap().read_to_string(&mut text).unwrap();
        text
    })
}
