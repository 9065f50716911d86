//! Assembling images: what the guest will see, whatever the source, and what hostile sources cannot do.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use enclos_api::config::EnclaveConfig;
use enclos_eif::image::{
    App, BuildConfig, BuildSpec, Built, DEFAULT_CMDLINE, GuestBinaries, ImageError, assemble, plan,
    retarget_nsm,
};
use enclos_eif::{Architecture, Eif, EifError, Measurements, Signer, inspect, measure};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::common::{
    CpioEntry, Pack, arm64_kernel, bzimage, chain, cpio_map, module, pack, vmlinux,
};

/// A folder with kernel, modules and guest programs, ready for [`assemble`].
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Self { folder };
        fs::write(bench.path("vmlinuz"), bzimage(Pack::Zstd, &vmlinux(1000))).unwrap();
        fs::write(bench.path("init"), "the init").unwrap();
        fs::write(bench.path("agent"), "the agent").unwrap();
        let modules = bench.path("modules/kernel/drivers");
        fs::create_dir_all(&modules).unwrap();
        let add = |name: &str, depends: &str, ids: &[u32]| {
            let packed = pack(Pack::Xz, &module(name, depends, ids));
            fs::write(modules.join(format!("{name}.ko.xz")), packed).unwrap();
        };
        add("virtio_mmio", "", &[]);
        add("vsock", "", &[]);
        add("vmw_vsock_virtio_transport_common", "vsock", &[]);
        add(
            "vmw_vsock_virtio_transport",
            "vmw_vsock_virtio_transport_common,vsock",
            &[19],
        );
        add("nsm", "rng-core", &[33]);
        fs::write(modules.join("rng-core.ko"), module("rng_core", "", &[])).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn output(&self) -> PathBuf {
        self.path("out.eif")
    }

    fn spec(&self, source: &str) -> BuildSpec {
        BuildSpec {
            source: self.path(source),
            reference: None,
            config: BuildConfig::default(),
            kernel: self.path("vmlinuz"),
            modules: self.path("modules"),
            guest: GuestBinaries {
                init: self.path("init"),
                agent: self.path("agent"),
            },
            cmdline: DEFAULT_CMDLINE.into(),
            name: None,
            version: None,
            custom_metadata: Value::Null,
            epoch: 0,
        }
    }

    /// Builds from a tar archive with these bytes.
    fn build_archive(&self, archive: &[u8]) -> Result<Output, ImageError> {
        fs::write(self.path("source.tar"), archive).unwrap();
        self.build(&self.spec("source.tar"))
    }

    fn build(&self, spec: &BuildSpec) -> Result<Output, ImageError> {
        let built = assemble(spec, None, &self.output())?;
        let bytes = fs::read(self.output()).unwrap();
        let mut file = Cursor::new(&bytes);
        let eif = Eif::parse(&mut file).unwrap();
        assert_eq!(measure(&mut file, &eif).unwrap(), built.measurements);
        let sections: Vec<_> = eif.ramdisks().copied().collect();
        let ramdisks: Vec<_> = sections
            .iter()
            .map(|section| cpio_map(&eif.read_section(&mut file, section, 1 << 24).unwrap()))
            .collect();
        let [runtime, app] = <[_; 2]>::try_from(ramdisks).unwrap();
        Ok(Output {
            built,
            bytes,
            runtime,
            app,
        })
    }
}

struct Output {
    built: Built,
    bytes: Vec<u8>,
    runtime: BTreeMap<String, CpioEntry>,
    app: BTreeMap<String, CpioEntry>,
}

impl Output {
    /// Paths of the application's root file system without the mount points that every image gets.
    fn paths(&self) -> Vec<&str> {
        const ALWAYS: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", "var"];
        let paths = self
            .app
            .keys()
            .filter_map(|path| path.strip_prefix("rootfs/"));
        paths.filter(|path| !ALWAYS.contains(path)).collect()
    }

    fn file(&self, path: &str) -> &CpioEntry {
        &self.app[&format!("rootfs/{path}")]
    }

    fn text(&self, path: &str) -> &str {
        std::str::from_utf8(&self.file(path).body).unwrap()
    }
}

/// A tar archive under construction; paths are written as they are, hostile ones too.
#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn entry(mut self, kind: EntryType, path: &str, link: &str, mode: u32, body: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_size(body.len().try_into().unwrap());
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, body: &str) -> Self {
        self.entry(EntryType::Regular, path, "", 0o644, body.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", 0o755, b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, b"")
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// Files of an OCI layout by name.
type Files = BTreeMap<String, Vec<u8>>;

fn add_blob(files: &mut Files, bytes: &[u8]) -> Value {
    let digest = sha256(bytes);
    files.insert(format!("blobs/sha256/{digest}"), bytes.to_vec());
    json!({
        "mediaType": "application/octet-stream",
        "digest": format!("sha256:{digest}"),
        "size": bytes.len(),
    })
}

fn config_document(config: &Value, layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|l| format!("sha256:{}", sha256(l)))
        .collect();
    json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// A layout with one image; each layer is packed by `pack_layer`.
fn layout(config: &Value, layers: &[Vec<u8>], pack_layer: impl Fn(&[u8]) -> Vec<u8>) -> Files {
    let mut files = Files::new();
    let document = serde_json::to_vec(&config_document(config, layers)).unwrap();
    let config = add_blob(&mut files, &document);
    let layers: Vec<_> = layers
        .iter()
        .map(|l| add_blob(&mut files, &pack_layer(l)))
        .collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest = add_blob(&mut files, &serde_json::to_vec(&manifest).unwrap());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    files.insert(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    );
    files
}

fn archive(files: &Files) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len().try_into().unwrap());
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    archive.into_inner().unwrap()
}

fn app_config() -> Value {
    json!({ "Cmd": ["/app"] })
}

/// The image that these layers make.
fn layered(layers: &[Vec<u8>]) -> Result<Output, ImageError> {
    Bench::new().build_archive(&archive(&layout(&app_config(), layers, <[u8]>::to_vec)))
}

/// Packed, a gigabyte of name is a few kilobytes.
#[test]
fn names_and_attributes_without_end_are_refused_before_they_are_read() {
    let endless = vec![b'a'; 2 << 20];
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let layer = Layer::default()
            .file("before", "x")
            .entry(kind, "././@LongLink", "", 0o644, &endless)
            .file("app", "x");
        let error = layered(&[layer.finish()]).err().unwrap();
        let causes = enclos_api::error::chain(&error);
        assert!(
            causes.contains("more than 1048576 bytes"),
            "{kind:?}: {causes}"
        );
    }
    // What an entry holds is not its name: contents that nobody reads are stepped over.
    let large = "x".repeat(3 << 20);
    let layer = Layer::default()
        .file(".wh.gone", &large)
        .file("app", &large)
        .file("last", "x");
    assert!(layered(&[layer.finish()]).is_ok());
}

#[test]
fn the_runtime_holds_init_agent_and_modules() {
    let output = layered(&[Layer::default().file("app", "x").finish()]).unwrap();
    let runtime = &output.runtime;
    assert_eq!(
        (runtime["init"].mode, &runtime["init"].body[..]),
        (0o100_755, &b"the init"[..])
    );
    assert_eq!(runtime["enclos/agent"].mode, 0o100_755);
    assert_eq!(
        (runtime["dev/console"].mode, runtime["dev/console"].device),
        (0o020_600, (5, 1))
    );
    let order = std::str::from_utf8(&runtime["enclos/modules/modules.order"].body).unwrap();
    let expected = [
        "virtio_mmio.ko",
        "vsock.ko",
        "vmw_vsock_virtio_transport_common.ko",
        "vmw_vsock_virtio_transport.ko",
        "rng_core.ko",
    ];
    assert_eq!(order.lines().collect::<Vec<_>>(), expected);
    for name in expected {
        assert!(
            runtime[&format!("enclos/modules/{name}")]
                .body
                .starts_with(b"\x7fELF")
        );
    }
    let nsm = &runtime["enclos/modules/nsm.ko"].body;
    assert_eq!(nsm, &module("nsm", "rng-core", &[33]));
    assert_eq!(
        runtime["enclos/modules/nsm-rng.ko"].body,
        retarget_nsm(nsm).unwrap()
    );
}

#[test]
fn building_twice_gives_the_same_bytes() {
    let layer = Layer::default()
        .dir("z")
        .file("z/1", "one")
        .hard_link("z/2", "z/1")
        .finish();
    let files = layout(&app_config(), &[layer], <[u8]>::to_vec);
    let [first, second] = [0, 1].map(|_| Bench::new().build_archive(&archive(&files)).unwrap());
    assert!(first.bytes == second.bytes);
    let bench = Bench::new();
    fs::write(bench.path("source.tar"), archive(&files)).unwrap();
    let mut spec = bench.spec("source.tar");
    spec.epoch = 1_700_000_000;
    let later = bench.build(&spec).unwrap();
    assert_eq!(
        later.built.metadata.build_metadata.build_time,
        "2023-11-14T22:13:20+00:00"
    );
    assert_eq!(later.file("z/1").mtime, 1_700_000_000);
    assert_ne!(later.built.measurements, first.built.measurements);
}

#[test]
fn one_changed_byte_of_the_app_changes_pcr0_and_pcr2_only() {
    let build = |body| layered(&[Layer::default().file("app", body).finish()]).unwrap();
    let (first, second) = (
        build("one").built.measurements,
        build("two").built.measurements,
    );
    assert_ne!(first.pcr0, second.pcr0);
    assert_eq!(first.pcr1, second.pcr1);
    assert_ne!(first.pcr2, second.pcr2);
}

#[test]
fn a_signed_build_differs_in_its_signature_only() {
    let bench = Bench::new();
    fs::create_dir(bench.path("root")).unwrap();
    let mut spec = bench.spec("root");
    spec.config.app.command = Some(vec!["/a".into()]);
    let output = bench.output();
    let unsigned = assemble(&spec, None, &output).unwrap().measurements;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap();
    let signer = Signer::from_pem(&key.serialize_pem(), &certificate.pem()).unwrap();
    let signed = assemble(&spec, Some(&signer), &output)
        .unwrap()
        .measurements;
    assert_eq!(
        signed,
        Measurements {
            pcr8: Some(signer.pcr8()),
            ..unsigned
        }
    );
    let first = fs::read(&output).unwrap();
    assemble(&spec, Some(&signer), &output).unwrap();
    assert!(first == fs::read(&output).unwrap());
}

#[test]
fn the_image_passes_inspection_and_tells_its_origin() {
    let output = layered(&[Layer::default().file("app", "x").finish()]).unwrap();
    let report = inspect(&mut Cursor::new(&output.bytes)).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let metadata = report.metadata.unwrap();
    assert_eq!(metadata["ImageName"], "source");
    assert_eq!(metadata["BuildMetadata"]["KernelVersion"], "6.12.0-test");
    assert_eq!(metadata["DockerInfo"]["config"]["Cmd"][0], "/app");
    assert_eq!(metadata["ImageVersion"].as_str().unwrap().len(), 64);
    assert_eq!(report.cmdline.as_deref(), Some(DEFAULT_CMDLINE));
}

#[test]
fn every_form_of_an_image_gives_the_same_file_system() {
    let layers = [
        Layer::default().dir("etc").file("etc/a", "1").finish(),
        Layer::default()
            .file("etc/b", "2")
            .symlink("link", "etc/a")
            .finish(),
    ];
    let reference = layered(&layers).unwrap();
    for packing in [Pack::Gzip, Pack::Zstd, Pack::Xz] {
        let files = layout(&app_config(), &layers, |layer| pack(packing, layer));
        let output = Bench::new().build_archive(&archive(&files)).unwrap();
        assert_eq!(output.app, reference.app, "{packing:?}");
        let whole = pack(packing, &archive(&files));
        assert_eq!(
            Bench::new().build_archive(&whole).unwrap().app,
            reference.app
        );
    }
    let bench = Bench::new();
    for (name, bytes) in layout(&app_config(), &layers, <[u8]>::to_vec) {
        let path = bench.path("oci").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(bench.build(&bench.spec("oci")).unwrap().app, reference.app);
    assert_eq!(
        Bench::new()
            .build_archive(&docker_save(&layers))
            .unwrap()
            .app,
        reference.app
    );
}

/// What `docker save` wrote before it wrote OCI layouts, with a link for the second layer.
fn docker_save(layers: &[Vec<u8>]) -> Vec<u8> {
    let config = serde_json::to_vec(&config_document(&app_config(), layers)).unwrap();
    let name = format!("{}.json", sha256(&config));
    let manifest = json!([{
        "Config": name, "RepoTags": ["demo:1"], "Layers": ["aa/layer.tar", "bb/layer.tar"],
    }]);
    let mut archive = Layer::default()
        .entry(EntryType::Regular, &name, "", 0o644, &config)
        .entry(EntryType::Regular, "aa/layer.tar", "", 0o644, &layers[0])
        .entry(EntryType::Regular, "real.tar", "", 0o644, &layers[1])
        .entry(
            EntryType::Symlink,
            "bb/layer.tar",
            "../real.tar",
            0o777,
            b"",
        );
    archive = archive.file("manifest.json", &manifest.to_string());
    archive.finish()
}

#[test]
fn docker_archives_are_verified_too() {
    let layers = [
        Layer::default().file("a", "1").finish(),
        Layer::default().file("b", "2").finish(),
    ];
    let good = docker_save(&layers);
    let output = Bench::new().build_archive(&good).unwrap();
    assert_eq!(output.built.metadata.image_name, "demo");
    let needle = b"2".as_slice();
    let at = good
        .windows(513)
        .position(|w| w[..1] == *b"b" && &w[512..] == needle)
        .unwrap();
    let mut bad = good;
    bad[at + 512] = b'3';
    let error = Bench::new().build_archive(&bad).err().unwrap();
    assert!(matches!(error, ImageError::Digest { .. }), "{error}");
}

/// An archive with more files than a container's archive has may be a root file system, and nothing else.
#[test]
fn archives_of_containers_have_no_files_without_end() {
    let bench = Bench::new();
    let mut many = Layer::default().dir("d/");
    for number in 0..(1 << 15) + 1 {
        many = many.file(&format!("d/{number}"), "");
    }
    let many = many.file("app", "x");
    let mut spec = bench.spec("many.tar");
    spec.config.app.command = Some(vec!["/app".into()]);
    fs::write(bench.path("many.tar"), many.finish()).unwrap();
    let paths = bench.build(&spec).unwrap().paths().len();
    assert_eq!(paths, (1 << 15) + 3);
    let mut files = layout(
        &app_config(),
        &[Layer::default().file("app", "x").finish()],
        <[u8]>::to_vec,
    );
    files.extend((0..1 << 15).map(|number| (format!("a/{number}"), Vec::new())));
    let error = bench.build_archive(&archive(&files)).err().unwrap();
    assert!(
        error.to_string().contains("is one of over 32768"),
        "{error}"
    );
}

#[test]
fn tampered_blobs_are_refused() {
    let layers = [Layer::default().file("app", "x").finish()];
    let files = layout(&app_config(), &layers, |layer| pack(Pack::Gzip, layer));
    for name in files.keys().filter(|name| name.starts_with("blobs/")) {
        let mut tampered = files.clone();
        let blob = tampered.get_mut(name).unwrap();
        // Behind the header of a gzip layer, inside the braces of a document.
        let at = blob.len() - 2;
        blob[at] ^= 1;
        let error = Bench::new()
            .build_archive(&archive(&tampered))
            .err()
            .unwrap();
        assert!(
            matches!(error, ImageError::Digest { .. } | ImageError::Layer { .. }),
            "{error}"
        );
        let mut longer = files.clone();
        longer.get_mut(name).unwrap().push(b' ');
        let error = Bench::new().build_archive(&archive(&longer)).err().unwrap();
        assert!(matches!(error, ImageError::Digest { .. }), "{error}");
        let mut missing = files.clone();
        missing.remove(name);
        let error = Bench::new()
            .build_archive(&archive(&missing))
            .err()
            .unwrap();
        assert!(matches!(error, ImageError::MissingBlob { .. }), "{error}");
    }
}

#[test]
fn a_layer_that_is_not_the_configured_one_is_refused() {
    let honest = [Layer::default().file("app", "x").finish()];
    let other = Layer::default().file("app", "y").finish();
    let files = layout(&app_config(), &honest, |_| pack(Pack::Zstd, &other));
    let error = Bench::new().build_archive(&archive(&files)).err().unwrap();
    assert!(matches!(&error, ImageError::Digest { name, .. } if name.ends_with("(unpacked)")));
}

#[test]
fn paths_do_not_leave_the_tree() {
    for path in ["../escape", "a/../../escape", ".."] {
        let error = layered(&[Layer::default().file(path, "x").finish()])
            .err()
            .unwrap();
        assert!(matches!(error, ImageError::Entry { .. }), "{path}: {error}");
    }
    let error = layered(&[Layer::default().hard_link("a", "../../etc/passwd").finish()]);
    assert!(matches!(error.err().unwrap(), ImageError::Entry { .. }));
    let absolute = layered(&[Layer::default().file("/etc/x", "x").finish()]).unwrap();
    assert_eq!(absolute.paths(), ["etc", "etc/x"]);
}

#[test]
fn symbolic_links_are_followed_inside_the_tree_only() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().to_str().unwrap();
    let layer = Layer::default()
        .symlink("out", outside)
        .file("out/x", "x")
        .symlink("up", "../../../../up2")
        .file("up/y", "y")
        .symlink("lib", "usr/lib")
        .file("lib/z", "z");
    let output = layered(&[layer.finish()]).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(
        output.text(&format!("{}/x", outside.trim_start_matches('/'))),
        "x"
    );
    assert_eq!(output.text("up2/y"), "y");
    assert_eq!(output.text("usr/lib/z"), "z");
    assert_eq!(output.text("out"), outside);
    let circle = Layer::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "x")
        .finish();
    let error = layered(&[circle]).err().unwrap();
    assert!(error.to_string().contains("symbolic links"), "{error}");
}

#[test]
fn whiteouts_hide_lower_layers_and_nothing_else() {
    let lower = Layer::default()
        .file("gone", "")
        .file("kept", "")
        .file("d/old", "")
        .file("d/e/f", "");
    let upper = Layer::default()
        .file(".wh.gone", "")
        .file("d/new", "")
        .file("d/.wh.e", "");
    let output = layered(&[lower.finish(), upper.finish()]).unwrap();
    assert_eq!(output.paths(), ["d", "d/new", "d/old", "kept"]);
    // A whiteout beside a new file of the same name hides the old one only, in either order.
    for upper in [
        Layer::default().file(".wh.a", "").file("a", "new"),
        Layer::default().file("a", "new").file(".wh.a", ""),
    ] {
        let lower = Layer::default().file("a", "old").finish();
        assert_eq!(layered(&[lower, upper.finish()]).unwrap().text("a"), "new");
    }
}

#[test]
fn opaque_directories_show_their_own_layer_only() {
    let lower = Layer::default()
        .file("d/old", "")
        .file("d/e/old", "")
        .file("other", "")
        .finish();
    for upper in [
        Layer::default()
            .dir("d")
            .file("d/.wh..wh..opq", "")
            .file("d/new", "")
            .file("d/e/new", ""),
        Layer::default()
            .dir("d")
            .file("d/new", "")
            .file("d/e/new", "")
            .file("d/.wh..wh..opq", ""),
    ] {
        let output = layered(&[lower.clone(), upper.dir("d/e").finish()]).unwrap();
        assert_eq!(output.paths(), ["d", "d/e", "d/e/new", "d/new", "other"]);
    }
}

#[test]
fn odd_whiteouts_are_harmless() {
    let output = layered(&[Layer::default()
        .file("x/.wh.y", "")
        .file(".wh..wh.plnk", "")
        .finish()]);
    assert!(output.unwrap().paths().is_empty());
    for name in ["a/.wh.", "a/.wh...", ".wh.."] {
        let layer = Layer::default().file("a/b", "").file(name, "").finish();
        let error = layered(&[layer]).err().unwrap();
        assert!(matches!(error, ImageError::Entry { .. }), "{name}: {error}");
    }
}

/// What containers/storage and umoci, which podman and buildah and others unpack with, make of the same layers.
#[test]
fn whiteouts_are_read_as_runtimes_read_them() {
    let lower = || {
        Layer::default()
            .file("d/a", "")
            .file("d/b", "")
            .file("top", "")
    };
    // A directory of that name is one too, and what aufs keeps for itself is nobody's, nor anything below it.
    let upper = Layer::default()
        .dir("d/.wh.a/")
        .dir(".wh..wh.plnk/")
        .file(".wh..wh.plnk/1.2", "");
    let output = layered(&[lower().finish(), upper.finish()]).unwrap();
    assert_eq!(output.paths(), ["d", "d/b", "top"]);
    // There is nothing inside a file that could be hidden.
    for inside in ["top/.wh..wh..opq", "top/.wh.x"] {
        let upper = Layer::default().file(inside, "");
        let output = layered(&[lower().finish(), upper.finish()]).unwrap();
        assert_eq!(output.paths(), ["d", "d/a", "d/b", "top"]);
    }
}

/// Before there was a type for directories, a slash at the end of a name made one. Where there is a type, it counts.
#[test]
fn a_slash_at_the_end_makes_a_directory_of_entries_without_a_type_alone() {
    let [old, new] = [[0], *b"0"].map(|flag| {
        let mut header = Header::new_gnu();
        header.set_path("a/").unwrap();
        header.as_old_mut().linkflag = flag;
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_cksum();
        let output = layered(&[[header.as_bytes().as_slice(), &[0; 1024]].concat()]).unwrap();
        output.file("a").mode & 0o170_000
    });
    assert_eq!((old, new), (0o040_000, 0o100_000));
}

/// The kernel would leave such a file out of the enclave and say nothing.
#[test]
fn names_that_linux_cannot_have_are_refused() {
    let longest = "n".repeat(255);
    let output = layered(&[pax(&[("path", &longest)], "x", b"")]).unwrap();
    assert_eq!(output.paths(), [longest.as_str()]);
    let longer = format!("d/{longest}n/x");
    let error = layered(&[pax(&[("path", &longer)], "x", b"")])
        .err()
        .unwrap();
    assert!(error.to_string().contains("over 255 bytes"), "{error}");
    let target = |len| {
        let mut archive = tar::Builder::new(Vec::new());
        let target = "t".repeat(len);
        let headers = [("linkpath", target.as_bytes())];
        archive.append_pax_extensions(headers).unwrap();
        let mut layer = archive.into_inner().unwrap();
        layer.truncate(layer.len() - 1024);
        layered(&[[layer, Layer::default().symlink("s", "x").finish()].concat()])
    };
    assert_eq!(target(4095).unwrap().text("s").len(), 4095);
    let error = target(4096).err().unwrap();
    assert!(error.to_string().contains("over 4095 bytes"), "{error}");
}

/// `..` takes out the name before it, whatever that is or is not, in entries and in whiteouts.
#[test]
fn dots_take_out_the_name_before_them() {
    let lower = Layer::default()
        .dir("d/")
        .file("d/gone", "")
        .file("d/sub/old", "")
        .symlink("link", "d/sub");
    let upper = Layer::default()
        .file("nowhere/../a", "a")
        .file("link/../b", "b")
        .file("/../d/./../d//c", "c")
        .file("d/sub/../.wh.gone", "")
        .file("d/sub/new", "")
        .file("d/x/../sub/y/../.wh..wh..opq", "")
        .file(".wh.b/../e", "e")
        .entry(EntryType::Directory, "d/sub/..", "", 0o700, b"");
    let output = layered(&[lower.finish(), upper.finish()]).unwrap();
    assert_eq!(
        output.paths(),
        ["a", "b", "d", "d/c", "d/sub", "d/sub/new", "e", "link"]
    );
    assert_eq!(output.file("d").mode, 0o040_700);
    for path in [
        "d/.wh.",
        "d/../.wh.../x/..",
        "../.wh.a",
        "d/../../.wh..wh..opq",
    ] {
        let layer = Layer::default().file("d/b", "").file(path, "").finish();
        let error = layered(&[layer]).err().unwrap();
        assert!(matches!(error, ImageError::Entry { .. }), "{path}: {error}");
    }
}

/// As in a runtime, whose root is the image.
#[test]
fn targets_of_hard_links_stop_at_the_root() {
    for target in ["/d/a", "../../d/a", "d/../d/a", "x/../d/./a"] {
        let layer = Layer::default().file("d/a", "A").hard_link("h", target);
        assert_eq!(
            layered(&[layer.finish()]).unwrap().text("h"),
            "A",
            "{target}"
        );
    }
}

#[test]
fn the_last_of_several_entries_wins() {
    let layer = Layer::default()
        .file("a", "first")
        .file("a", "second")
        .file("d/x", "")
        .file("d", "now a file")
        .symlink("s", "a")
        .dir("s");
    let output = layered(&[layer.finish()]).unwrap();
    assert_eq!(output.text("a"), "second");
    assert_eq!(output.text("d"), "now a file");
    assert_eq!(output.file("s").mode, 0o040_755);
    assert_eq!(output.paths(), ["a", "d", "s"]);
    let error = layered(&[Layer::default().file("a", "").file("a/b", "").finish()])
        .err()
        .unwrap();
    assert!(error.to_string().contains("no directory"), "{error}");
}

#[test]
fn hard_links_share_an_inode_and_the_last_name_carries_the_body() {
    let layer = Layer::default()
        .file("b", "body")
        .hard_link("a", "b")
        .hard_link("d/c", "b");
    let later = Layer::default().file("b", "changed");
    let output = layered(&[layer.finish(), later.finish()]).unwrap();
    let (a, c) = (output.file("a"), output.file("d/c"));
    assert_eq!((a.inode, a.links, a.body.len()), (c.inode, 2, 0));
    assert_eq!(c.body, b"body");
    assert_eq!((output.text("b"), output.file("b").links), ("changed", 1));
    for target in ["missing", "d"] {
        let layer = Layer::default().dir("d").hard_link("a", target).finish();
        assert!(matches!(
            layered(&[layer]).err().unwrap(),
            ImageError::Entry { .. }
        ));
    }
}

#[test]
fn owners_modes_and_devices_are_kept() {
    let layer = Layer::default()
        .entry(EntryType::Regular, "setuid", "", 0o4755, b"x")
        .entry(EntryType::Directory, "sticky/", "", 0o1777, b"")
        .entry(EntryType::Char, "null", "", 0o666, b"")
        .entry(EntryType::Block, "disk", "", 0o660, b"")
        .entry(EntryType::Fifo, "pipe", "", 0o600, b"");
    let output = layered(&[layer.finish()]).unwrap();
    assert_eq!(output.file("setuid").mode, 0o104_755);
    assert_eq!(
        (output.file("setuid").uid, output.file("setuid").gid),
        (7, 8)
    );
    assert_eq!(output.file("sticky").mode, 0o041_777);
    assert_eq!(
        (output.file("null").mode, output.file("null").device),
        (0o020_666, (1, 3))
    );
    assert_eq!(
        (output.file("disk").mode, output.file("disk").device),
        (0o060_660, (1, 3))
    );
    assert_eq!(output.file("pipe").mode, 0o010_600);
    assert!(output.app.values().all(|entry| entry.mtime == 0));
    let unknown = Layer::default()
        .entry(EntryType::new(b'Z'), "z", "", 0o644, b"")
        .finish();
    assert!(matches!(
        layered(&[unknown]).err().unwrap(),
        ImageError::Entry { .. }
    ));
}

#[test]
fn lost_attributes_are_reported() {
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_pax_extensions([("SCHILY.xattr.security.capability", &b"\x01"[..])])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mode(0o755);
    archive
        .append_data(&mut header, "bin/ping", &b""[..])
        .unwrap();
    let output = layered(&[archive.into_inner().unwrap()]).unwrap();
    assert_eq!(
        output.built.warnings,
        [
            "bin/ping loses extended attributes such as file capabilities: an initial RAM file system has none"
        ]
    );
}

/// Records for all entries that follow, as `git archive` writes them. Runtimes do not heed them, however many there are.
#[test]
fn records_for_all_entries_are_stepped_over() {
    let mut records = b"28 GNU.sparse.name=elsewhere\n19 SCHILY.xattr.a=b\n".to_vec();
    records.resize(3 << 20, b'\n');
    for body in [&records[..49], &records] {
        let layer = Layer::default()
            .entry(
                EntryType::XGlobalHeader,
                "pax_global_header",
                "",
                0o644,
                body,
            )
            .file("app", "x");
        let output = layered(&[layer.finish()]).unwrap();
        assert_eq!(output.paths(), ["app"]);
        assert!(
            output.built.warnings.is_empty(),
            "{:?}",
            output.built.warnings
        );
    }
}

/// An entry of a PAX archive with these extended headers.
fn pax(headers: &[(&str, &str)], name: &str, body: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let headers = headers.iter().map(|(key, value)| (*key, value.as_bytes()));
    archive.append_pax_extensions(headers).unwrap();
    let mut header = Header::new_ustar();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o644);
    header.set_size(body.len().try_into().unwrap());
    archive.append_data(&mut header, name, body).unwrap();
    archive.into_inner().unwrap()
}

#[test]
fn sparse_files_have_their_zeros() {
    let mut body = b"1\n4\n3\n".to_vec();
    body.resize(512, 0);
    body.extend_from_slice(b"abc");
    let headers = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "dir/sparse"),
        ("GNU.sparse.realsize", "10"),
    ];
    let output = layered(&[pax(&headers, "dir/GNUSparseFile.7/sparse", &body)]).unwrap();
    assert_eq!(output.file("dir/sparse").body, b"\0\0\0\0abc\0\0\0");
    assert_eq!(output.paths(), ["dir", "dir/sparse"]);
    // What a runtime would take for a whiteout is one here, and what is no file is not made one.
    let mut hidden = headers;
    hidden[2].1 = "dir/.wh.gone";
    let lower = Layer::default().file("dir/gone", "").finish();
    let output = layered(&[lower, pax(&hidden, "dir/GNUSparseFile.7/.wh.gone", &body)]).unwrap();
    assert_eq!(output.paths(), ["dir"]);
    let mut link = pax(&headers, "x", &[]);
    let at = link.len() - 1024 - 512;
    link[at + 156] = b'2';
    let sum: u32 = link[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
    let field: u32 = link[at + 148..at + 156]
        .iter()
        .map(|byte| u32::from(*byte))
        .sum();
    link[at + 148..at + 156].copy_from_slice(format!("{:06o}\0 ", sum - field + 8 * 32).as_bytes());
    let error = layered(&[link]).err().unwrap();
    assert!(
        error.to_string().contains("records of a sparse one"),
        "{error}"
    );
}

/// Holes at the start, in the middle, at the end, and nothing but one, packed in every format that GNU tar knows.
#[test]
fn sparse_files_become_what_gnu_tar_packed() {
    let bench = Bench::new();
    let root = bench.path("root");
    let long = format!("a-name-{}", "of-many-letters-".repeat(9));
    fs::create_dir_all(root.join(&long)).unwrap();
    let sparse = |name: &str, size: u64, pieces: &[u64]| {
        let file = fs::File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, byte) in pieces.iter().zip(1..) {
            std::os::unix::fs::FileExt::write_all_at(&file, &[byte; 5000], *at).unwrap();
        }
    };
    sparse("middle", 9 << 20, &[1 << 20, 3 << 20, 5 << 20, 7 << 20]);
    sparse("ends", 3 << 20, &[0, (3 << 20) - 5000]);
    sparse("empty", 1 << 20, &[]);
    sparse(&format!("{long}/deep"), 2 << 20, &[1 << 20]);
    let names = ["empty", "ends", "middle", &*format!("{long}/deep")].map(str::to_owned);
    for version in ["0.0", "0.1", "1.0", "gnu"] {
        let mut tar = std::process::Command::new("tar");
        tar.current_dir(&root)
            .args(["--create", "--sparse", "--file", "-"]);
        match version {
            "gnu" => tar.arg("--format=gnu"),
            _ => tar.args(["--format=posix", &format!("--sparse-version={version}")]),
        };
        let packed = tar.args(&names).output().unwrap();
        assert!(packed.status.success(), "{packed:?}");
        assert!(packed.stdout.len() < 1 << 20, "{version}: not sparse");
        let layer = layered(std::slice::from_ref(&packed.stdout)).unwrap();
        fs::write(bench.path("root.tar"), packed.stdout).unwrap();
        let mut spec = bench.spec("root.tar");
        spec.config.app.command = Some(vec!["/middle".into()]);
        let whole = bench.build(&spec).unwrap();
        for name in &names {
            let body = fs::read(root.join(name)).unwrap();
            assert!(
                layer.file(name).body == body,
                "{version}: {name} in a layer"
            );
            assert!(
                whole.file(name).body == body,
                "{version}: {name} in a root file system"
            );
        }
    }
}

/// A thousand bytes that say they are eight exabytes of zeros fill no disk.
#[test]
fn sparse_files_are_limited_by_what_they_become() {
    let mut body = b"0\n".to_vec();
    body.resize(512, 0);
    let headers = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "bomb"),
        ("GNU.sparse.realsize", "9223372036854775807"),
    ];
    let error = layered(&[pax(&headers, "x", &body)]).err().unwrap();
    assert!(
        chain(&error).contains("at most 4294967295"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_truncated_layer_is_an_error() {
    let whole = Layer::default().file("app", &"x".repeat(2000)).finish();
    let error = layered(&[whole[..700].to_vec()]).err().unwrap();
    assert!(
        matches!(error, ImageError::Layer { .. }),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_folder_and_its_archive_give_the_same_file_system() {
    let bench = Bench::new();
    let root = bench.path("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/app"), "app").unwrap();
    fs::set_permissions(root.join("bin/app"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::hard_link(root.join("bin/app"), root.join("bin/same")).unwrap();
    symlink("/nowhere", root.join("link")).unwrap();
    let mut spec = bench.spec("root");
    let error = bench.build(&spec).err().unwrap();
    assert!(matches!(error, ImageError::NoCommand), "{error}");
    spec.config.app.command = Some(vec!["/bin/app".into()]);
    let folder = bench.build(&spec).unwrap();
    assert_eq!(
        (folder.file("bin/app").mode, folder.file("bin/app").uid),
        (0o100_750, 0)
    );
    assert_eq!(folder.file("bin/app").inode, folder.file("bin/same").inode);
    assert_eq!(folder.text("link"), "/nowhere");
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.mode(tar::HeaderMode::Complete);
    archive.append_dir_all(".", &root).unwrap();
    fs::write(bench.path("root.tar"), archive.into_inner().unwrap()).unwrap();
    spec.source = bench.path("root.tar");
    let paths: Vec<_> = folder.paths().into_iter().map(str::to_owned).collect();
    assert_eq!(bench.build(&spec).unwrap().paths(), paths);
}

#[test]
fn whiteouts_in_a_root_file_system_are_files() {
    let bench = Bench::new();
    let tar = Layer::default().file("a", "").file(".wh.a", "").finish();
    fs::write(bench.path("root.tar"), tar).unwrap();
    let mut spec = bench.spec("root.tar");
    spec.config.app.command = Some(vec!["/a".into()]);
    assert_eq!(bench.build(&spec).unwrap().paths(), [".wh.a", "a"]);
}

#[test]
fn attested_tls_is_measured_and_only_for_ports_that_are_reachable() {
    let config =
        json!({ "Entrypoint": ["/entry"], "ExposedPorts": { "5000/tcp": {}, "8000/tcp": {} } });
    let bench = Bench::new();
    let files = layout(&config, &[Layer::default().finish()], <[u8]>::to_vec);
    let plain = bench.build_archive(&archive(&files)).unwrap();
    let text = String::from_utf8(plain.app["enclos/config.json"].body.clone()).unwrap();
    assert!(
        !text.contains("attested_tls"),
        "images without it are as before: {text}"
    );
    let mut spec = bench.spec("source.tar");
    spec.config.attested_tls = vec![8000, 5000, 8000];
    let output = bench.build(&spec).unwrap();
    assert_eq!(output.built.config.attested_tls, [5000, 8000]);
    assert_ne!(
        output.built.measurements.pcr2,
        plain.built.measurements.pcr2
    );
    spec.config.ports = Some(vec![8000]);
    let text = chain(&bench.build(&spec).err().unwrap());
    assert!(text.contains("ingress.attested_tls"), "{text}");
}

#[test]
fn the_configuration_is_measured_as_the_image_and_the_user_say() {
    let config = json!({
        "Entrypoint": ["/entry", "-x"], "Cmd": ["arg"], "User": "app:app", "WorkingDir": "/srv",
        "Env": ["A=1", "B=2=3"], "StopSignal": "SIGINT",
        "ExposedPorts": { "5000/tcp": {}, "8000-8001": {}, "53/udp": {} },
    });
    let bench = Bench::new();
    let files = layout(&config, &[Layer::default().finish()], <[u8]>::to_vec);
    let output = bench.build_archive(&archive(&files)).unwrap();
    let written: EnclaveConfig =
        serde_json::from_slice(&output.app["enclos/config.json"].body).unwrap();
    assert_eq!(written, output.built.config);
    assert_eq!(written.process.argv, ["/entry", "-x", "arg"]);
    assert!(written.process.env[0].starts_with("PATH="));
    assert_eq!(written.process.env[1..], ["A=1", "B=2=3"]);
    assert_eq!(
        (written.process.cwd.as_str(), written.process.user.as_str()),
        ("/srv", "app:app")
    );
    assert_eq!(written.process.stop_signal, "SIGINT");
    assert_eq!(written.ingress, [5000, 8000, 8001]);
    assert!(output.built.warnings[0].contains("53/udp"));
    let mut spec = bench.spec("source.tar");
    spec.config = BuildConfig {
        app: App {
            command: Some(vec!["/other".into()]),
            env: [("A", "9"), ("API_KEY", "k")]
                .map(|(n, v)| (n.into(), v.into()))
                .into(),
            workdir: Some("/tmp".into()),
            user: Some("0".into()),
            stop_signal: Some("9".into()),
            log_to_host: true,
        },
        ports: Some(vec![]),
        attested_tls: vec![],
        kms: None,
    };
    let built = bench.build(&spec).unwrap().built;
    assert_eq!(built.config.process.argv, ["/other"]);
    assert_eq!(built.config.process.env[1..], ["B=2=3", "A=9", "API_KEY=k"]);
    assert_eq!(built.config.process.stop_signal, "9");
    assert!(built.config.process.log_to_host);
    let mut told = built.warnings.iter();
    assert!(told.any(|warning| warning.starts_with("app.log_to_host is set")));
    assert!(built.config.ingress.is_empty());
    assert!(
        built
            .warnings
            .iter()
            .any(|w| w.starts_with("API_KEY looks like a secret"))
    );
}

/// Docker takes any of these in a Dockerfile, and writes it into the image as it is there.
#[test]
fn signals_have_the_names_that_engines_know() {
    for name in ["TERM", "quit", "SIGRTMIN", "SIGRTMIN+3", "SIGRTMAX-1", "37"] {
        let config = json!({ "Cmd": ["/a"], "StopSignal": name });
        let files = layout(&config, &[], |layer| layer.to_vec());
        let output = Bench::new().build_archive(&archive(&files)).unwrap();
        assert_eq!(output.built.config.process.stop_signal, name);
    }
}

/// Runtimes mount something there; an application expects the directory.
#[test]
fn volumes_are_there() {
    let volumes = json!({ "Cmd": ["/a"], "Volumes": { "/data/db": {}, "/srv": {} } });
    let layer = Layer::default().dir("srv").file("srv/kept", "").finish();
    let files = layout(&volumes, &[layer], |layer| layer.to_vec());
    let output = Bench::new().build_archive(&archive(&files)).unwrap();
    assert_eq!(output.paths(), ["data", "data/db", "srv", "srv/kept"]);
    let layer = Layer::default().file("data", "").finish();
    let files = layout(&volumes, &[layer], |layer| layer.to_vec());
    let error = Bench::new().build_archive(&archive(&files)).err().unwrap();
    assert!(error.to_string().contains("Volumes"), "{error}");
}

#[test]
fn values_that_cannot_be_honoured_are_refused() {
    let cases = [
        (json!({}), "what to start"),
        (json!({ "Entrypoint": [""] }), "what to start"),
        (
            json!({ "Cmd": ["/a"], "WorkingDir": "relative" }),
            "WorkingDir",
        ),
        (json!({ "Cmd": ["/a"], "Env": ["NOVALUE"] }), "Env"),
        (
            json!({ "Cmd": ["/a"], "StopSignal": "TERM!" }),
            "StopSignal",
        ),
        (
            json!({ "Cmd": ["/a"], "StopSignal": "SIGNONSENSE" }),
            "StopSignal",
        ),
        (
            json!({ "Cmd": ["/a"], "ExposedPorts": { "99999/tcp": {} } }),
            "ExposedPorts",
        ),
        (
            json!({ "Cmd": ["/a"], "ExposedPorts": { "9-8/tcp": {} } }),
            "ExposedPorts",
        ),
        (json!({ "Cmd": "/a" }), "not the JSON"),
    ];
    for (config, expected) in cases {
        let files = layout(&config, &[Layer::default().finish()], <[u8]>::to_vec);
        let error = Bench::new().build_archive(&archive(&files)).err().unwrap();
        assert!(error.to_string().contains(expected), "{config}: {error}");
    }
}

/// A layout whose index names several images.
fn several(names: &[(&str, &str)]) -> Files {
    let mut files = Files::new();
    let mut manifests = Vec::new();
    for (name, architecture) in names {
        let layer = Layer::default().file("name", name).finish();
        let mut document = config_document(&app_config(), std::slice::from_ref(&layer));
        document["architecture"] = json!(architecture);
        let config = add_blob(&mut files, &serde_json::to_vec(&document).unwrap());
        let layers = [add_blob(&mut files, &layer)];
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut entry = add_blob(&mut files, &serde_json::to_vec(&manifest).unwrap());
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(entry);
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    files.insert("oci-layout".into(), b"{}".to_vec());
    files
}

#[test]
fn one_of_several_images_is_chosen_by_name() {
    let bench = Bench::new();
    let files = several(&[
        ("one:latest", "amd64"),
        ("two:2", "amd64"),
        ("arm", "arm64"),
    ]);
    fs::write(bench.path("source.tar"), archive(&files)).unwrap();
    let mut spec = bench.spec("source.tar");
    let error = bench.build(&spec).err().unwrap();
    assert!(matches!(error, ImageError::Ambiguous { .. }), "{error}");
    for (wanted, found) in [("one", "one:latest"), ("two:2", "two:2")] {
        spec.reference = Some(wanted.into());
        assert_eq!(bench.build(&spec).unwrap().text("name"), found);
    }
    spec.reference = Some("two".into());
    assert!(matches!(
        bench.build(&spec).err().unwrap(),
        ImageError::NoSuchImage { .. }
    ));
    spec.reference = Some("arm".into());
    let error = bench.build(&spec).err().unwrap();
    assert!(
        matches!(&error, ImageError::Platform { found, .. } if found == "linux/arm64"),
        "{error}"
    );
}

#[test]
fn an_index_of_platforms_is_followed_to_ours() {
    let mut files = several(&[("arm", "arm64"), ("ours", "amd64")]);
    let inner = files["index.json"].clone();
    let mut nested = add_blob(&mut files, &inner);
    nested["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
    let index = json!({ "schemaVersion": 2, "manifests": [nested] });
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    let output = Bench::new().build_archive(&archive(&files)).unwrap();
    assert_eq!(output.text("name"), "ours");
}

#[test]
fn hostile_layouts_are_refused() {
    let layer = [Layer::default().finish()];
    let good = layout(&app_config(), &layer, <[u8]>::to_vec);
    let with_index = |index: Value| {
        let mut files = good.clone();
        files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
        Bench::new().build_archive(&archive(&files)).err().unwrap()
    };
    let entry = |digest: &str| json!({ "manifests": [{ "digest": digest, "size": 1 }] });
    for digest in [
        "md5:00",
        "sha256:../../../etc/passwd",
        "sha256:",
        "sha256",
        &"A".repeat(64),
    ] {
        let error = with_index(entry(digest));
        assert!(
            matches!(error, ImageError::UnknownDigest { .. }),
            "{digest}: {error}"
        );
    }
    let absent = format!("sha256:{}", "0".repeat(64));
    assert!(matches!(
        with_index(entry(&absent)),
        ImageError::MissingBlob { .. }
    ));
    assert!(matches!(
        with_index(json!({ "manifests": [] })),
        ImageError::NoImage
    ));
    assert!(matches!(with_index(json!([])), ImageError::Json { .. }));
    let error = Bench::new().build_archive(&[b'x'; 4096]).err().unwrap();
    assert!(matches!(error, ImageError::UnknownSource { .. }), "{error}");
}

#[test]
fn of_two_modules_with_one_name_the_last_folder_has_the_one() {
    let (old, new) = (module("vsock", "", &[]), module("vsock", "", &[7]));
    let folders = [("a", &old), ("updates", &new), ("m", &old)];
    for turn in 0..folders.len() {
        let bench = Bench::new();
        fs::create_dir(bench.path("root")).unwrap();
        for (folder, bytes) in folders.iter().cycle().skip(turn).take(folders.len()) {
            let folder = bench.path("modules").join(folder);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("vsock.ko"), bytes).unwrap();
        }
        let mut spec = bench.spec("root");
        spec.config.app.command = Some(vec!["/a".into()]);
        let output = bench.build(&spec).unwrap();
        assert_eq!(output.runtime["enclos/modules/vsock.ko"].body, new);
    }
}

#[test]
fn missing_and_foreign_modules_are_named() {
    let bench = Bench::new();
    fs::create_dir(bench.path("root")).unwrap();
    let mut spec = bench.spec("root");
    spec.config.app.command = Some(vec!["/a".into()]);
    let vsock = bench.path("modules/kernel/drivers/vsock.ko.xz");
    let foreign = String::from_utf8_lossy(&module("vsock", "", &[])).into_owned();
    assert!(foreign.contains("6.12.0-test"));
    let mut bytes = module("vsock", "", &[]);
    let at = bytes.windows(6).position(|w| w == b"6.12.0").unwrap();
    bytes[at] = b'5';
    fs::write(&vsock, pack(Pack::Xz, &bytes)).unwrap();
    let error = bench.build(&spec).err().unwrap();
    assert!(
        matches!(&error, ImageError::OtherKernel { name, .. } if name == "vsock"),
        "{error}"
    );
    fs::write(&vsock, b"junk").unwrap();
    assert!(matches!(
        bench.build(&spec).err().unwrap(),
        ImageError::Module { .. }
    ));
    fs::remove_file(&vsock).unwrap();
    assert!(matches!(
        bench.build(&spec).err().unwrap(),
        ImageError::MissingModule { .. }
    ));
    fs::write(
        bench.path("modules/modules.builtin"),
        "kernel/net/vmw_vsock/vsock.ko\n",
    )
    .unwrap();
    let output = bench.build(&spec).unwrap();
    assert!(!output.runtime.contains_key("enclos/modules/vsock.ko"));
}

#[test]
fn a_plan_is_what_is_built_and_writes_nothing() {
    let bench = Bench::new();
    fs::create_dir(bench.path("root")).unwrap();
    fs::write(bench.path("root/app"), "the application").unwrap();
    let mut spec = bench.spec("root");
    spec.config.app.command = Some(vec!["/app".into()]);
    let before = fs::read_dir(bench.folder.path()).unwrap().count();
    let planned = plan(&spec).unwrap();
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), before);
    let built = assemble(&spec, None, &bench.output()).unwrap();
    assert_eq!(planned.measurements, built.measurements);
    assert_eq!(planned.metadata, built.metadata);
    assert_eq!(planned.config, built.config);
    assert_eq!(planned.len, fs::metadata(bench.output()).unwrap().len());
    assert_eq!(planned.len, built.len);
}

#[test]
fn a_failed_build_leaves_the_old_image() {
    let bench = Bench::new();
    fs::create_dir(bench.path("root")).unwrap();
    let mut spec = bench.spec("root");
    spec.config.app.command = Some(vec!["/a".into()]);
    fs::write(bench.output(), "old").unwrap();
    fs::write(&spec.kernel, "no kernel").unwrap();
    let error = bench.build(&spec).err().unwrap();
    assert!(chain(&error).contains("not a bzImage"), "{}", chain(&error));
    assert_eq!(fs::read(bench.output()).unwrap(), b"old");
    let left = fs::read_dir(bench.folder.path()).unwrap().count();
    assert_eq!(left, 6, "temporary files are gone");
}

#[test]
fn the_nsm_driver_is_bound_to_entropy_devices() {
    let mut original = module("nsm", "", &[33]);
    let retargeted = retarget_nsm(&original).unwrap();
    let differing = original
        .iter()
        .zip(&retargeted)
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!(
        differing, 3,
        "one byte of the table, two digits of the alias"
    );
    assert!(
        retargeted
            .windows(27)
            .any(|w| w == b"alias=virtio:d00000004v*\0de")
    );
    // A signature of 300 bytes, with the kernel's description of it.
    let unsigned = original.clone();
    original.extend_from_slice(&[0xee; 300]);
    original.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 44]);
    original.extend_from_slice(b"~Module signature appended~\n");
    assert_eq!(
        retarget_nsm(&original).unwrap(),
        retarget_nsm(&unsigned).unwrap()
    );
}

/// Makes modules and programs those of aarch64.
fn for_aarch64(bench: &Bench) {
    fs::write(bench.path("vmlinuz"), arm64_kernel()).unwrap();
    let modules = bench.path("modules/kernel/drivers");
    for (name, ids) in [
        ("virtio_mmio", 0),
        ("vmw_vsock_virtio_transport", 19),
        ("nsm", 33),
    ] {
        let mut module = module(name, "", &[ids]);
        module[18] = 183;
        fs::write(
            modules.join(format!("{name}.ko.xz")),
            pack(Pack::Xz, &module),
        )
        .unwrap();
    }
    for program in ["init", "agent"] {
        let mut elf = vmlinux(10);
        elf[18] = 183;
        fs::write(bench.path(program), elf).unwrap();
    }
}

#[test]
fn an_arm64_kernel_makes_an_image_for_aarch64() {
    let bench = Bench::new();
    for_aarch64(&bench);
    let files = several(&[("app", "arm64")]);
    fs::write(bench.path("source.tar"), archive(&files)).unwrap();
    let built = assemble(&bench.spec("source.tar"), None, &bench.output()).unwrap();
    assert_eq!(built.metadata.build_metadata.kernel_version, "6.12.0-test");
    let mut file = fs::File::open(bench.output()).unwrap();
    let report = inspect(&mut file).unwrap();
    assert_eq!((report.flags, report.crc_ok), (1, true));
    assert_eq!(report.measurements, built.measurements);
    assert!(
        matches!(report.findings[..], [EifError::Architecture]),
        "{:?}",
        report.findings
    );
    assert!(matches!(Eif::parse(&mut file), Err(EifError::Architecture)));
    // The same kernel under the other flag is found out.
    let mut bytes = fs::read(bench.output()).unwrap();
    bytes[7] = 0;
    crate::common::fix_crc(&mut bytes);
    assert!(matches!(
        Eif::parse(&mut Cursor::new(bytes)),
        Err(EifError::KernelArchitecture { .. })
    ));
}

#[test]
fn mixtures_of_processors_are_refused() {
    let bench = Bench::new();
    for_aarch64(&bench);
    let write = |platform| {
        let files = several(&[("app", platform)]);
        fs::write(bench.path("source.tar"), archive(&files)).unwrap();
    };
    let build = || assemble(&bench.spec("source.tar"), None, &bench.output()).unwrap_err();
    write("amd64");
    let error = build();
    let text = error.to_string();
    assert!(
        text.contains("linux/arm64") && text.contains("linux/amd64"),
        "{text}"
    );
    write("arm64");
    fs::write(bench.path("agent"), vmlinux(10)).unwrap();
    let expected = Architecture::Aarch64;
    let foreign = |error: &ImageError, name: &str| matches!(error, ImageError::OtherArchitecture { path, expected: e } if *e == expected && path.ends_with(name));
    assert!(foreign(&build(), "agent"));
    fs::write(bench.path("agent"), "a script").unwrap();
    let nsm = bench.path("modules/kernel/drivers/nsm.ko.xz");
    fs::write(nsm, pack(Pack::Xz, &module("nsm", "", &[33]))).unwrap();
    assert!(foreign(&build(), "nsm.ko.xz"));
}
