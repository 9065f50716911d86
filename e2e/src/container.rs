//! Container images, made and served on this machine alone: buildah's store in a folder of its own, and Debian's registry on loopback.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::child::{self, Child};
use crate::stack::free_address;

/// Copying a root file system, a few times over, on a busy machine.
const BUILD: Duration = Duration::from_secs(120);

const START: Duration = Duration::from_secs(30);

/// buildah, with chroots and plain folders: what it can do without a kernel's help, as in a container.
#[derive(Debug)]
pub struct Buildah {
    dir: PathBuf,
}

impl Buildah {
    /// An empty store below `dir`.
    ///
    /// # Errors
    /// buildah is not installed.
    pub fn new(dir: PathBuf) -> Result<Self> {
        let tools = dir.join("tools");
        fs::create_dir_all(&tools)?;
        let buildah = in_path("buildah");
        let buildah = buildah.context("buildah is not in PATH: install the package buildah")?;
        symlink(buildah, tools.join("buildah"))?;
        // Without them it maps no user ids, which all but root need.
        for helper in ["newuidmap", "newgidmap"] {
            if let Some(found) = in_path(helper) {
                symlink(found, tools.join(helper))?;
            }
        }
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrootless_storage_path = {:?}\nrunroot = {:?}\n",
            dir.join("storage"),
            dir.join("storage"),
            dir.join("storage-run")
        );
        fs::write(dir.join("storage.conf"), storage)?;
        Ok(Self { dir })
    }

    /// The environment in which a program finds this buildah, this store, and no other container tool.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("PATH", self.dir.join("tools")),
            ("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf")),
            ("STORAGE_DRIVER", "vfs".into()),
            ("BUILDAH_ISOLATION", "chroot".into()),
        ]
    }

    /// Makes an image of a root file system.
    ///
    /// # Errors
    /// buildah fails.
    pub fn import(&self, rootfs: &Path, name: &str) -> Result<()> {
        let container = self.run(&["from", "scratch"])?;
        let (container, rootfs) = (container.trim(), rootfs.display().to_string());
        self.run(&["add", "--quiet", container, &rootfs, "/"])?;
        self.run(&["config", "--env", "PATH=/usr/bin:/bin", container])?;
        self.run(&["commit", "--quiet", "--rm", container, name])
            .map(drop)
    }

    /// Pushes an image and returns its reference by digest.
    ///
    /// # Errors
    /// buildah fails.
    pub fn push(&self, name: &str, registry: &Registry, repository: &str) -> Result<String> {
        let digest = self.dir.join("digest");
        let target = format!("docker://{}/{repository}:1", registry.address);
        let file = digest.display().to_string();
        let options = ["--quiet", "--tls-verify=false", "--digestfile", &file];
        self.run(&[&["push"], options.as_slice(), &[name, &target]].concat())?;
        let digest = fs::read_to_string(digest)?;
        Ok(format!(
            "{}/{repository}@{}",
            registry.address,
            digest.trim()
        ))
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.dir.join("tools/buildah"));
        command.args(arguments).envs(self.environment());
        child::read(&mut command, BUILD)
    }
}

/// Where a program is.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut files = std::env::split_paths(&path).map(|folder| folder.join(program));
    files.find(|file| file.is_file())
}

/// A registry, gone when dropped.
#[derive(Debug)]
pub struct Registry {
    /// Where it listens.
    pub address: SocketAddr,
    _process: Child,
}

impl Registry {
    /// Starts one that keeps its images below `dir`.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let address = free_address()?;
        let storage = dir.join("images");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        let file = dir.join("registry.yml");
        fs::write(&file, config)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        let mut process = Child::start("docker-registry", command, &dir.join("registry.log"))?;
        process.until(START, || TcpStream::connect(address).is_ok())?;
        Ok(Self {
            address,
            _process: process,
        })
    }
}

/// The Dockerfile of the Flask example as it is, but for what would need a network: its base and its packages are in `base`.
///
/// # Errors
/// It has changed so that this is no longer true.
pub fn dockerfile_on(base: &str, text: &str) -> Result<String> {
    let (from, rest) = text.split_once('\n').context("it has several lines")?;
    ensure!(from.starts_with("FROM python:"), "another base: {from}");
    let (install, others): (Vec<&str>, Vec<&str>) = rest
        .lines()
        .partition(|line| line.starts_with("RUN pip install "));
    ensure!(install.len() == 1, "its packages are installed otherwise");
    Ok(format!("FROM {base}\n{}\n", others.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_a_network_is_replaced() {
        let text = include_str!("../../examples/flask-backend/Dockerfile");
        let changed = dockerfile_on("localhost/base", text).unwrap();
        assert!(
            changed.starts_with("FROM localhost/base\nWORKDIR /app\n"),
            "{changed}"
        );
        assert!(
            changed.ends_with("CMD [\"python3\", \"app.py\"]\n"),
            "{changed}"
        );
        assert!(!changed.contains("pip"), "{changed}");
        assert!(dockerfile_on("x", "FROM scratch\nCMD x\n").is_err());
    }
}
