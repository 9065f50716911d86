//! Where container images come from: an engine's socket, a registry, a Dockerfile. `cargo xtask test` installs the registry and
//! buildah.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
mod inputs;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inputs::{Desk, Layer};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A layer with one program.
fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(3);
    tar.append_data(&mut header, "app", b"app".as_slice())
        .unwrap();
    tar.into_inner().unwrap()
}

fn configuration() -> Vec<u8> {
    let document = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/app"], "Cmd": ["a b", "c\nd"], "User": "7" },
        "rootfs": { "type": "layers", "diff_ids": [sha256(&layer())] },
    });
    serde_json::to_vec(&document).unwrap()
}

/// The measured configuration and the registers of a plan.
fn planned(desk: &Desk, args: &[&str], vars: &[(&str, &str)]) -> (Value, Value) {
    let done = desk.try_run(&[&["plan", "--json"], args].concat(), vars);
    assert_eq!(done.status, 0, "{}", done.stderr);
    let plan = done.json();
    assert_eq!(
        plan["Configuration"]["process"]["argv"],
        json!(["/app", "a b", "c\nd"])
    );
    (plan["Configuration"].clone(), plan["Measurements"].clone())
}

/// An engine that has one image, `here:1`, and answers as Docker's does.
fn engine(desk: &Desk) -> String {
    let config = configuration();
    let name = format!("{}.json", sha256(&config).split_once(':').unwrap().1);
    let manifest = json!([{ "Config": name, "RepoTags": ["here:1"], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, body) in [
        (name.as_str(), config),
        ("layer.tar", layer()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        archive
            .append_data(&mut header, name, body.as_slice())
            .unwrap();
    }
    let archive = archive.into_inner().unwrap();
    let path = desk.0.path("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            if BufReader::new(&stream).read_line(&mut head).unwrap_or(0) == 0 {
                continue;
            }
            let (status, body): (_, &[u8]) = match head.split(' ').nth(1) {
                Some("/images/here:1/json") => ("200 OK", b"{}"),
                Some("/images/here:1/get") => ("200 OK", &archive),
                Some("/images/broken:1/json") => (
                    "500 Internal Server Error",
                    b"{\"message\":\"storage is gone\"}",
                ),
                _ => ("404 Not Found", b"{\"message\":\"No such image\"}"),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            // A client that has seen enough may hang up.
            let _ = stream.write_all(&[head.as_bytes(), body].concat());
        }
    });
    format!("unix://{path}")
}

#[test]
fn an_engine_gives_out_what_it_has_over_its_socket() {
    let desk = Desk::new();
    let host = engine(&desk);
    let vars = [("DOCKER_HOST", &*host), ("PATH", "/nonexistent")];
    planned(&desk, &["here:1"], &vars);
    let done = desk.try_run(&["plan", "here:1"], &vars);
    assert!(
        done.stderr
            .contains("Using the locally available Docker image..."),
        "{}",
        done.stderr
    );
    let missing = desk.try_run(&["plan", "localhost:1/elsewhere:1"], &vars);
    assert!(
        missing
            .stderr
            .contains("localhost:1/elsewhere:1 is not here"),
        "{}",
        missing.stderr
    );
    let broken = desk.try_run(&["plan", "broken:1"], &vars);
    assert_eq!(broken.status, 1);
    assert!(
        broken
            .stderr
            .contains("500 Internal Server Error: {\"message\":\"storage is gone\"}"),
        "{}",
        broken.stderr
    );
}

/// Debian's registry on a port of its own, gone with the test.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(desk: &Desk) -> Self {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let storage = desk.0.path("registry");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {storage}\nhttp:\n  addr: {address}\n"
        );
        let config = desk.0.file("registry.yml", config.as_bytes());
        let mut command = Command::new("docker-registry");
        command
            .args(["serve", &config])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry (package docker-registry): {error}"));
        let registry = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Pushes the image and returns its reference by digest.
    fn push(&self) -> String {
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        });
        let reference: Reference = format!("{}/app:1", self.address).parse().unwrap();
        let layers = [ImageLayer::oci_v1(layer(), None)];
        let config = Config::oci_v1(configuration(), None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let digest = runtime.block_on(async {
            client
                .push(&reference, &layers, config, &RegistryAuth::Anonymous, None)
                .await
                .unwrap();
            client
                .fetch_manifest_digest(&reference, &RegistryAuth::Anonymous)
                .await
                .unwrap()
        });
        format!("{}/app@{digest}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_is_pulled_from_a_registry_by_digest() {
    let desk = Desk::new();
    let registry = Registry::start(&desk);
    let reference = registry.push();
    let by_digest = planned(&desk, &[&reference], &[]);
    let tag = format!("{}/app:1", registry.address);
    let refused = desk.try_run(&["plan", &tag], &[]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("--allow-tag"), "{}", refused.stderr);
    assert_eq!(planned(&desk, &[&tag, "--allow-tag"], &[]), by_digest);
    let other = format!("{}/app@sha256:{}", registry.address, "0".repeat(64));
    let missing = desk.try_run(&["plan", &other], &[]);
    assert_eq!(missing.status, 1);
    assert!(
        missing.stderr.contains("cannot fetch the image"),
        "{}",
        missing.stderr
    );
}

/// The registry's own store is changed behind its back: whoever runs it cannot slip in another image.
#[test]
fn a_registry_that_gives_out_something_else_is_found_out() {
    let desk = Desk::new();
    let registry = Registry::start(&desk);
    let reference = registry.push();
    let digest = sha256(&layer());
    let hex = digest.split_once(':').unwrap().1;
    let blob = desk.0.path(&format!(
        "registry/docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[512] ^= 1; // the program's first byte
    std::fs::write(&blob, bytes).unwrap();
    let done = desk.try_run(&["plan", &reference], &[]);
    assert_eq!(done.status, 1, "{}", done.stdout);
    assert!(
        done.stderr.to_lowercase().contains("digest"),
        "{}",
        done.stderr
    );
}

/// A folder with buildah and what it needs where nobody is root.
fn tools(desk: &Desk) -> String {
    let tools = desk.0.path("tools");
    std::fs::create_dir(&tools).unwrap();
    let path = std::env::var("PATH").unwrap();
    // Whoever is not root needs the other two for buildah's user namespace.
    for name in ["buildah", "newuidmap", "newgidmap"] {
        let mut files = std::env::split_paths(&path).map(|folder| folder.join(name));
        if let Some(file) = files.find(|file| file.is_file()) {
            std::os::unix::fs::symlink(file, format!("{tools}/{name}")).unwrap();
        }
    }
    let found = std::path::Path::new(&tools).join("buildah").exists();
    assert!(found, "buildah is in the package buildah");
    tools
}

/// A store of buildah's own. Whoever is not root is asked for it by another name.
fn storage(desk: &Desk) -> String {
    let (root, run) = (desk.0.path("storage"), desk.0.path("storage-run"));
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{root}\"\nrootless_storage_path = \"{root}\"\nrunroot = \"{run}\"\n"
    );
    desk.0.file("storage.conf", storage.as_bytes())
}

/// Chroots and plain directories: what buildah can do without a kernel's help.
#[test]
fn a_dockerfile_is_built_with_buildah() {
    let desk = Desk::new();
    std::fs::create_dir(desk.0.path("context")).unwrap();
    desk.0.file("context/app", b"app");
    desk.0.file(
        "context/Dockerfile",
        b"FROM scratch\nCOPY app /app\nENTRYPOINT [\"/app\"]\nCMD [\"a b\", \"c\\nd\"]\n",
    );
    let (tools, storage) = (tools(&desk), storage(&desk));
    let vars = [
        ("PATH", &*tools),
        ("CONTAINERS_STORAGE_CONF", &*storage),
        ("STORAGE_DRIVER", "vfs"),
        ("BUILDAH_ISOLATION", "chroot"),
    ];
    let context = desk.0.path("context");
    planned(&desk, &["enclos-test:1", "--docker-dir", &context], &vars);
    // It is in buildah's store now, so its name is enough.
    planned(&desk, &["localhost/enclos-test:1"], &vars);
    let args = ["--docker-dir", &context, "--output"];
    let [first, second, other] = [("a", "0"), ("b", "0"), ("c", "86400")].map(|(name, epoch)| {
        // Files of another time make no other image.
        desk.0.file("context/app", b"app");
        let output = desk.0.path(name);
        let vars = [vars.as_slice(), &[("SOURCE_DATE_EPOCH", epoch)]].concat();
        let built = [&["build", "enclos-test:1"], args.as_slice(), &[&output]].concat();
        let done = desk.try_run(&built, &vars);
        assert_eq!(done.status, 0, "{}", done.stderr);
        std::fs::read(output).unwrap()
    });
    assert!(first == second, "two builds of one Dockerfile differ");
    let at = |image: &[u8], text: &str| image.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(at(&other, "\"created\":\"1970-01-02T00:00:00Z\"") && !at(&first, "1970-01-02"));
}

/// Three layers with what layers can do to each other, whatever the order.
fn odd_layers() -> [Vec<u8>; 3] {
    let lower = Layer::default()
        .dir("a/")
        .file("a/gone", "1")
        .file("a/kept", "2")
        .dir("b/")
        .file("b/old", "3")
        .file("b/sub/x", "4")
        .symlink("to-b", "b")
        .file("file", "5")
        .file("dir/in", "6")
        .file("linked", "7")
        .hard_link("a/link", "linked")
        .dir("usr/lib/")
        .file("usr/lib/one", "8")
        .symlink("lib", "usr/lib")
        .symlink("out", "../../etc");
    let middle = Layer::default()
        .file("a/.wh.gone", "")
        .dir("a/.wh.never/")
        .dir("b/")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "9")
        .file("lib/two", "10")
        .hard_link("hard-to-lower", "/file")
        .file("deep/er/file", "11");
    let upper = Layer::default()
        .dir("file/")
        .file("file/inside", "12")
        .file("dir", "a file now")
        .file(".wh.linked", "")
        .hard_link("up", "../../a/kept")
        .entry(EntryType::Fifo, "pipe", "", 0o600, "")
        .entry(EntryType::Regular, "suid", "", 0o4755, "13")
        .file("slash/", "a file too")
        .file("nowhere/../dotted", "14")
        .file("to-b/../beside-b", "15")
        .file("/../b/x/../y", "16")
        .file("deep/../a/./..//a/.wh.kept", "")
        .hard_link("nowhere/../hard", "x/../usr/lib/../lib/one")
        .entry(EntryType::Directory, "deep/", "", 0o700, "");
    [lower, middle, upper].map(Layer::finish)
}

/// A layer for each way in which PAX archives of GNU tar have a file with holes. Entries of its older way buildah does not know.
fn sparse_layers(desk: &Desk) -> Vec<Vec<u8>> {
    let pack = |version| {
        let name = format!("holes-{version}");
        let file = std::fs::File::create(desk.0.path(&name)).unwrap();
        file.set_len(2 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 5000], 1 << 20).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", &format!("--sparse-version={version}")]);
        tar.args(["-cSf", "-", "-C", &desk.0.path("."), &name]);
        let output = tar.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    ["0.0", "0.1", "1.0"].map(pack).to_vec()
}

/// buildah applies the layers and packs the result as one: an image of either has the same file system.
#[test]
fn layers_become_what_buildah_makes_of_them() {
    let desk = Desk::new();
    let layers = [odd_layers().to_vec(), sparse_layers(&desk)].concat();
    let layers = desk.layout("layers", "amd64", &layers);
    let squashed = desk.0.path("squashed");
    let (tools, storage) = (tools(&desk), storage(&desk));
    let policy = desk.0.file(
        "policy.json",
        br#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    );
    for args in [
        ["from", "--name", "odd", "oci:layers"].as_slice(),
        &["commit", "--squash", "odd", "oci:squashed:t"],
    ] {
        let (command, rest) = args.split_first().unwrap();
        let mut buildah = Command::new(format!("{tools}/buildah"));
        buildah
            .arg(command)
            .args(["--signature-policy", &policy])
            .args(rest);
        // Its names have no capital letters, which a temporary folder's path may have.
        buildah.current_dir(desk.0.path("."));
        buildah.env("CONTAINERS_STORAGE_CONF", &storage);
        buildah
            .env("STORAGE_DRIVER", "vfs")
            .env("BUILDAH_ISOLATION", "chroot");
        let output = buildah.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
    }
    let [ours, theirs] =
        [("ours.eif", &layers), ("theirs.eif", &squashed)].map(|(name, source)| {
            let output = desk.0.path(name);
            desk.run(&["build", source, "--output", &output]);
            output
        });
    let difference = desk.run(&["diff", &ours, &theirs, "--json"]).json();
    let changes = difference["changes"].as_array().unwrap().iter();
    let measured: Vec<_> = changes
        .filter(|change| change["input"] != "metadata")
        .collect();
    assert!(measured.is_empty(), "{measured:#?}");
}
