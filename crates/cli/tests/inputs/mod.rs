//! Everything that an image is made of, small: a kernel as far as a loader looks, guest programs, an application.

#![allow(dead_code, reason = "each test binary uses its own part of it")]

use enclos_eif::cpio::Archive;
use enclos_eif::{BuildMetadata, Builder, Metadata};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::daemon::{Daemon, Done, run_with};

/// Kernel, guest programs and an application.
pub(crate) struct Desk(pub(crate) Daemon);

impl Desk {
    pub(crate) fn new() -> Self {
        let daemon = Daemon::none();
        for folder in ["cache/kernel/6.12.0-test/modules", "guest", "root/bin"] {
            std::fs::create_dir_all(daemon.path(folder)).unwrap();
        }
        let built_in =
            "kernel/virtio_mmio.ko\nkernel/vmw_vsock_virtio_transport.ko\nkernel/nsm.ko\n";
        daemon.file(
            "cache/kernel/6.12.0-test/modules/modules.builtin",
            built_in.as_bytes(),
        );
        daemon.file("cache/kernel/6.12.0-test/vmlinuz", &kernel());
        daemon.file("guest/enclos-init", b"init");
        daemon.file("guest/enclos-agent", b"agent");
        daemon.file("root/bin/app", b"the application");
        daemon.file(
            "enclos.toml",
            b"[app]\ncommand = [\"/bin/app\"]\n[ingress]\nports = [5000]\n",
        );
        Self(daemon)
    }

    /// Runs a command that has to succeed.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        let done = self.try_run(args, &[]);
        assert_eq!(done.status, 0, "{}", done.stderr);
        done
    }

    /// Runs a command with more variables in its environment.
    pub(crate) fn try_run(&self, args: &[&str], vars: &[(&str, &str)]) -> Done {
        let (cache, guest) = (self.0.path("cache"), self.0.path("guest"));
        let own = [("ENCLOS_CACHE_DIR", &*cache), ("ENCLOS_GUEST_DIR", &*guest)];
        run_with(&self.0, args, &[&own, vars].concat())
    }

    pub(crate) fn with_inputs(&self, command: &str, more: &[&str]) -> Done {
        let (root, config) = (self.0.path("root"), self.0.path("enclos.toml"));
        self.run(&[&[command, root.as_str(), "--config", &config], more].concat())
    }

    pub(crate) fn build(&self, name: &str) -> String {
        let output = self.0.path(name);
        self.with_inputs("build", &["--output", &output]);
        output
    }
}

impl Desk {
    /// An OCI layout with an image for this processor.
    pub(crate) fn layout(&self, name: &str, architecture: &str, layers: &[Vec<u8>]) -> String {
        let folder = self.0.path(name);
        std::fs::create_dir_all(format!("{folder}/blobs/sha256")).unwrap();
        let blob = |bytes: &[u8], kind: &str| {
            let digest = hex::encode(Sha256::digest(bytes));
            std::fs::write(format!("{folder}/blobs/sha256/{digest}"), bytes).unwrap();
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() })
        };
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| blob(layer, "layer.v1.tar"))
            .collect();
        let digests: Vec<_> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Cmd": ["/app"] },
            "rootfs": { "type": "layers", "diff_ids": digests },
        });
        let config = blob(config.to_string().as_bytes(), "config.v1+json");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        let version = json!({ "imageLayoutVersion": "1.0.0" });
        for (name, value) in [("index.json", index), ("oci-layout", version)] {
            std::fs::write(format!("{folder}/{name}"), value.to_string()).unwrap();
        }
        folder
    }
}

/// A layer under construction; paths are written as they are.
#[derive(Default)]
pub(crate) struct Layer(Vec<u8>);

impl Layer {
    pub(crate) fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        link: &str,
        mode: u32,
        body: &str,
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(3);
        header.set_gid(4);
        header.set_mtime(1_700_000_000);
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(body.as_bytes());
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, body: &str) -> Self {
        self.entry(EntryType::Regular, path, "", 0o644, body)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", 0o755, "")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, "")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, "")
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A bzImage as far as a loader looks.
fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 1024 + 16];
    kernel[0x1f1] = 1; // one setup sector
    kernel[0x1f4] = 1; // one paragraph of code
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    kernel[0x20e..0x210].copy_from_slice(&0x180_u16.to_le_bytes());
    kernel[0x380..0x38b].copy_from_slice(b"6.12.0-test");
    kernel
}

/// An arm64 `Image` as far as a loader looks, without the PE header of a UEFI program.
pub(crate) fn arm64_kernel() -> Vec<u8> {
    let mut kernel = vec![0; 4096];
    kernel[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    kernel[56..60].copy_from_slice(b"ARM\x64");
    kernel[1000..1026].copy_from_slice(b"Linux version 6.12.0-test ");
    kernel
}

pub(crate) fn metadata() -> Metadata {
    Metadata {
        image_name: "n".to_owned(),
        image_version: "v".to_owned(),
        build_metadata: BuildMetadata {
            build_time: "2024-01-01T00:00:00+00:00".to_owned(),
            build_tool: "t".to_owned(),
            build_tool_version: "0".to_owned(),
            operating_system: "Linux".to_owned(),
            kernel_version: "6.6".to_owned(),
        },
        docker_info: json!({}),
        custom_metadata: Value::Null,
    }
}

/// An image that would be run: its kernel is as long as its header says, its ramdisks are archives.
pub(crate) fn sound_image() -> Vec<u8> {
    let archive = Archive::new(Vec::new(), 0).finish().unwrap();
    let mut out = std::io::Cursor::new(Vec::new());
    let builder = Builder::new()
        .kernel(kernel())
        .cmdline("cmdline")
        .metadata(metadata());
    let builder = builder.ramdisk(archive.clone()).ramdisk(archive);
    builder.write(&mut out).unwrap();
    out.into_inner()
}
