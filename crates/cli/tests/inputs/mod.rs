//! Everything that an image is made of, small: a kernel as far as a loader looks, guest programs, an application.

#![allow(dead_code, reason = "each test binary uses its own part of it")]

use enclos_eif::cpio::Archive;
use enclos_eif::{BuildMetadata, Builder, Metadata};
use serde_json::{Value, json};

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
