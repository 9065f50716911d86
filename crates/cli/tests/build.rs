//! `build` and `build-enclave` up to the point where a real kernel is needed: inputs, container tools, codes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;

use std::os::unix::fs::PermissionsExt as _;

use daemon::{Daemon, Done, run_with};

/// A desk with a container tool that is a script, and with files where kernel and guest binaries belong.
struct Desk {
    daemon: Daemon,
    path: String,
    cache: String,
    guest: String,
}

impl Desk {
    fn new(docker: Option<&str>) -> Self {
        let daemon = Daemon::none();
        let folder = |name: &str| {
            let path = daemon.path(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let (path, guest) = (folder("bin"), folder("guest"));
        folder("cache/kernel/6.12.0-test");
        for file in [
            "cache/kernel/6.12.0-test/vmlinuz",
            "guest/enclos-init",
            "guest/enclos-agent",
        ] {
            daemon.file(file, b"not really");
        }
        if let Some(script) = docker {
            let program = daemon.file("bin/docker", format!("#!/bin/sh\n{script}\n").as_bytes());
            std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let cache = daemon.path("cache");
        Self {
            daemon,
            path,
            cache,
            guest,
        }
    }

    fn run(&self, args: &[&str]) -> Done {
        let output = self.daemon.path("out.eif");
        let option = if args[0] == "build" {
            "--output"
        } else {
            "--output-file"
        };
        let vars = [
            ("PATH", &*self.path),
            ("ENCLOS_CACHE_DIR", &*self.cache),
            ("ENCLOS_GUEST_DIR", &*self.guest),
        ];
        run_with(&self.daemon, &[args, &[option, &output]].concat(), &vars)
    }
}

#[track_caller]
fn failed(done: &Done, status: i32, texts: &[&str]) {
    assert_eq!(
        (done.status, done.stdout.as_str()),
        (status, ""),
        "{}",
        done.stderr
    );
    for text in texts {
        assert!(
            done.stderr.contains(text),
            "{text} is not in {}",
            done.stderr
        );
    }
}

#[test]
fn without_a_container_tool_a_tag_is_e50_and_a_dockerfile_e49() {
    let desk = Desk::new(None);
    let pulled = desk.run(&["build-enclave", "--docker-uri", "localhost:1/hello:latest"]);
    failed(
        &pulled,
        50,
        &[
            "localhost:1/hello:latest is not here",
            "NAME@sha256:",
            "--allow-tag",
        ],
    );
    let allowed = [
        "build-enclave",
        "--docker-uri",
        "localhost:1/hello:latest",
        "--allow-tag",
    ];
    failed(
        &desk.run(&allowed),
        50,
        &["cannot fetch the image localhost:1/hello:latest from localhost:1"],
    );
    let built = desk.run(&[
        "build-enclave",
        "--docker-uri",
        "hello",
        "--docker-dir",
        ".",
    ]);
    failed(
        &built,
        49,
        &["none of docker, podman and buildah", "an OCI archive"],
    );
    let own = desk.run(&["build", "localhost:1/hello"]);
    failed(&own, 1, &["error: localhost:1/hello is not here"]);
}

#[test]
fn a_docker_client_without_its_daemon_counts_as_none() {
    let desk = Desk::new(Some("echo Cannot connect to the Docker daemon >&2; exit 1"));
    let done = desk.run(&[
        "build-enclave",
        "--docker-uri",
        "hello",
        "--docker-dir",
        ".",
    ]);
    failed(
        &done,
        49,
        &["none of docker, podman and buildah is installed and working"],
    );
}

#[test]
fn a_build_that_fails_says_so() {
    let desk = Desk::new(Some(
        "case $1 in images) ;; *) echo no such instruction >&2; exit 1;; esac",
    ));
    let done = desk.run(&[
        "build-enclave",
        "--docker-uri",
        "hello",
        "--docker-dir",
        ".",
    ]);
    failed(
        &done,
        49,
        &[
            "no such instruction",
            "docker could not build the image hello",
        ],
    );
}

/// Docker's BuildKit takes the time of an image from the environment.
#[test]
fn docker_is_told_of_what_time_the_image_is() {
    let script = "case $1 in build) echo \"time $SOURCE_DATE_EPOCH: $*\" >&2; exit 1;; esac";
    let desk = Desk::new(Some(script));
    let done = desk.run(&["build", "hello", "--docker-dir", "."]);
    failed(&done, 1, &["time 0: build -t hello ."]);
}

#[test]
fn a_local_image_is_announced_in_awss_words_and_saved() {
    let desk = Desk::new(Some("case $1 in save) echo junk > \"$3\";; esac"));
    let done = desk.run(&["build-enclave", "--docker-uri", "hello:latest"]);
    failed(
        &done,
        48,
        &[
            "Start building the Enclave Image...\n",
            "Using the locally available Docker image...\n",
            "[ E48 ]",
        ],
    );
    assert!(!std::path::Path::new(&desk.daemon.path("out.eif")).exists());
}

#[test]
fn what_an_image_needs_is_named_when_it_is_missing() {
    let desk = Desk::new(None);
    let rootfs = desk.daemon.path("guest");
    let broken = [
        ("ENCLOS_CACHE_DIR", "/no/cache"),
        ("ENCLOS_GUEST_DIR", &*desk.guest),
    ];
    let output = desk.daemon.path("out.eif");
    let args = [
        "build-enclave",
        "--docker-uri",
        &rootfs,
        "--output-file",
        &output,
    ];
    failed(
        &run_with(&desk.daemon, &args, &broken),
        52,
        &[
            "no kernel is in the cache",
            "hint: fetch Debian's with `enclos kernel fetch`",
        ],
    );
    let broken = [
        ("ENCLOS_CACHE_DIR", &*desk.cache),
        ("ENCLOS_GUEST_DIR", "/no/guest"),
    ];
    failed(
        &run_with(&desk.daemon, &args, &broken),
        52,
        &["no enclos-init and enclos-agent in /no/guest"],
    );
}

#[test]
fn inputs_are_checked_before_anything_is_written() {
    let desk = Desk::new(None);
    let rootfs = desk.daemon.path("guest");
    let toml = desk.daemon.file("enclos.toml", b"[app]\ncommand = 5\n");
    failed(
        &desk.run(&["build", &rootfs, "--config", &toml]),
        1,
        &["enclos.toml"],
    );
    failed(
        &desk.run(&["build", &rootfs, "--config", "/no/enclos.toml"]),
        1,
        &["/no/enclos.toml"],
    );
    failed(
        &desk.run(&["build", "oci:/no/layout"]),
        1,
        &["error: cannot open /no/layout"],
    );
    failed(
        &desk.run(&["build-enclave", "--docker-uri", "docker-archive:/no.tar"]),
        19,
        &["[ E19 ] cannot open /no.tar"],
    );
    let large = desk
        .daemon
        .file("large.json", format!("\"{}\"", "x".repeat(4096)).as_bytes());
    failed(
        &desk.run(&[
            "build-enclave",
            "--docker-uri",
            &rootfs,
            "--metadata",
            &large,
        ]),
        3,
        &["at most 4096"],
    );
    failed(
        &desk.run(&["build", &rootfs]),
        1,
        &["nothing says what to start"],
    );
    assert_eq!(desk.run(&["build"]).status, 2);
    assert_eq!(desk.run(&["build", &rootfs, "--rootfs", &rootfs]).status, 2);
    assert_eq!(
        desk.run(&["build", &rootfs, "--private-key", "x"]).status,
        2
    );
}
