//! What the machine must have, and how it gets it.
//!
//! On Debian and what derives from it, missing packages are installed with apt-get (through sudo for a plain
//! user). Elsewhere a missing program is named together with what it is for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell::Shell;

/// One thing that must be there.
struct Need {
    /// How its presence is told.
    present: fn() -> bool,
    /// Debian package that brings it.
    package: &'static str,
    /// What it is for, as the end of "… is needed to".
    purpose: &'static str,
}

/// What every command needs.
const BASE: &[Need] = &[
    Need {
        present: || {
            in_path("qemu-system-x86_64") && Path::new("/usr/share/qemu/qboot.rom").exists()
        },
        package: "qemu-system-x86",
        purpose: "run enclaves (engine `qemu`: qemu-system-x86_64 with its firmware qboot.rom)",
    },
    Need {
        present: || in_path("mmdebstrap"),
        package: "mmdebstrap",
        purpose: "make the Python example's root file system from Debian packages",
    },
    Need {
        present: || {
            Shell::new("python3")
                .args(["-m", "pip", "--version"])
                .succeeds()
        },
        package: "python3-pip",
        purpose: "fetch the Python example's wheels",
    },
    Need {
        present: || is_root() || in_path("newuidmap"),
        package: "uidmap",
        purpose: "run mmdebstrap without being root",
    },
    Need {
        present: || in_path("cc"),
        package: "gcc",
        purpose: "compile C that some crates carry",
    },
    Need {
        present: || in_path("cmake"),
        package: "cmake",
        purpose: "compile C that some crates carry",
    },
    Need {
        present: || in_path("openssl"),
        package: "openssl",
        purpose: "check from outside that key releases have the standard's shape",
    },
];

/// What the tests need besides, building the lean kernel included.
const TESTS: &[Need] = &[
    Need {
        present: || {
            Shell::new("python3")
                .args(["-c", "import ensurepip"])
                .succeeds()
        },
        package: "python3-venv",
        purpose: "install Python packages for tests apart from the system",
    },
    Need {
        present: || in_path("c++"),
        package: "g++",
        purpose: "compile the fuzzer's engine, libFuzzer",
    },
    Need {
        present: || in_path("pkg-config"),
        package: "pkg-config",
        purpose: "build AWS's own tools, which images are compared with",
    },
    Need {
        present: || Path::new("/usr/include/openssl/ssl.h").exists(),
        package: "libssl-dev",
        purpose: "build AWS's own tools, which images are compared with",
    },
    Need {
        present: || in_path("buildah"),
        package: "buildah",
        purpose: "test building from a Dockerfile",
    },
    Need {
        present: || in_path("docker-registry"),
        package: "docker-registry",
        purpose: "test pulling from a registry",
    },
    Need {
        present: || in_path("softhsm2-util"),
        package: "softhsm2",
        purpose: "test signing with a key in a PKCS#11 token",
    },
    Need {
        present: || Path::new("/usr/lib/postgresql").exists() || in_path("initdb"),
        package: "postgresql",
        purpose: "test the KMS on a database that its nodes share",
    },
    Need {
        present: || in_path("strace"),
        package: "strace",
        purpose: "test the KMS with writes that fail",
    },
    Need {
        present: || in_path("flex"),
        package: "flex",
        purpose: "build the lean kernel",
    },
    Need {
        present: || in_path("bison"),
        package: "bison",
        purpose: "build the lean kernel",
    },
    Need {
        present: || in_path("bc"),
        package: "bc",
        purpose: "build the lean kernel",
    },
    Need {
        present: || in_path("make"),
        package: "make",
        purpose: "build the lean kernel",
    },
    Need {
        present: || in_path("patch"),
        package: "patch",
        purpose: "build the lean kernel",
    },
    Need {
        present: || in_path("xz"),
        package: "xz-utils",
        purpose: "unpack the lean kernel's source",
    },
    Need {
        present: || Path::new("/usr/include/gelf.h").is_file(),
        package: "libelf-dev",
        purpose: "build the lean kernel",
    },
    Need {
        present: || in_path("node"),
        package: "nodejs",
        purpose: "test the verifier in Node.js",
    },
    Need {
        present: || in_path("npm"),
        package: "npm",
        purpose: "install AWS's SDK for JavaScript, which calls the KMS in tests",
    },
    Need {
        present: || in_path("chromium"),
        package: "chromium",
        purpose: "test the page that verifies documents in a browser",
    },
    Need {
        present: || {
            let library =
                |machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1");
            ["x86_64", "aarch64"]
                .map(library)
                .iter()
                .any(|path| Path::new(path).exists())
        },
        package: "libfaketime",
        purpose: "show another verifier of documents the time that a document is from",
    },
];

/// Installs what the demo and every other command need.
pub(crate) fn install_missing() -> Result<()> {
    install(BASE)
}

/// Installs what the tests need.
pub(crate) fn install_missing_for_tests() -> Result<()> {
    install_missing()?;
    install(TESTS)
}

/// Installs what is missing, or says what it is.
fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_debian() {
        bail!("{}", explanation(&missing));
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    apt_install(&packages)?;
    match missing.iter().find(|need| !(need.present)()) {
        None => Ok(()),
        Some(need) => bail!(
            "package {} is installed, but what is needed to {} is still not found in PATH",
            need.package,
            need.purpose
        ),
    }
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let hint = || format!("install by hand: apt-get install {}", packages.join(" "));
    update_index().with_context(hint)?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&arguments).with_context(hint)
}

/// Learns from the configured repositories what packages there are.
pub(crate) fn update_index() -> Result<()> {
    apt_get(&["update"])
}

/// Whether apt's index names the package.
pub(crate) fn apt_knows(package: &str) -> bool {
    Shell::new("apt-cache").args(["show", package]).succeeds()
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let shell = match is_root() {
        true => Shell::new("env"),
        false => Shell::new("sudo").arg("env"),
    };
    // sudo keeps no variables, and what is read here could not answer a question.
    let shell = shell.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    shell.args(arguments).read().map(drop)
}

fn explanation(missing: &[&Need]) -> String {
    let mut text = String::from("this machine is not a Debian, so nothing was installed. Missing:");
    for need in missing {
        text += &format!(
            "\n  {} (Debian's package name), needed to {}",
            need.package, need.purpose
        );
    }
    text
}

fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    names_debian(&release) && in_path("apt-get")
}

fn names_debian(os_release: &str) -> bool {
    let values = os_release.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        matches!(name, "ID" | "ID_LIKE").then_some(value)
    });
    let mut words = values.flat_map(|value| value.trim_matches('"').split(' '));
    words.any(|word| word == "debian")
}

pub(crate) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path)
        .chain(standard)
        .any(|dir| dir.join(program).is_file())
}

/// Whether programs in `folder` are found by their names.
pub(crate) fn searches(folder: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir == folder)
}

/// The owner of `/proc/self` is the effective user.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_told_from_others() {
        assert!(names_debian("NAME=\"x\"\nID=debian\n"));
        assert!(names_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(names_debian("ID=pop\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!names_debian("ID=fedora\nPRETTY_NAME=\"not debian\"\n"));
        assert!(!names_debian(""));
    }

    #[test]
    fn the_explanation_names_package_and_purpose() {
        let text = explanation(&BASE.iter().collect::<Vec<_>>());
        assert!(
            BASE.iter()
                .all(|need| text.contains(need.package) && text.contains(need.purpose))
        );
    }
}
