//! Images of the examples and of the test program, built by `enclos build` as anyone would.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enclos_api::config::HostConfig;
use enclos_api::control::Measurements;
use serde_json::Value;

use crate::child;
use crate::container::{Buildah, dockerfile_on};
use crate::kms::{REGION, SERVER_NAME};
use crate::stack;
use crate::workbench::Workbench;

const BUILD: Duration = Duration::from_secs(120);

/// The image that the Flask example's Dockerfile is built on: Python and the packages that it names.
const FLASK_BASE: &str = "localhost/python-with-packages:1";

/// An enclave image file.
#[derive(Debug, Clone)]
pub struct Image {
    /// The file.
    pub eif: PathBuf,
    /// PCR0, PCR1, PCR2 as `enclos build` printed them.
    pub measurements: Measurements,
    /// Memory that an enclave of it needs.
    pub memory_mib: u64,
}

/// Builds images in a folder, for one KMS.
#[derive(Debug)]
pub struct Builder<'a> {
    bench: &'a Workbench,
    dir: PathBuf,
    kms_ca: PathBuf,
    kernel: Option<PathBuf>,
}

impl<'a> Builder<'a> {
    /// Images go to `dir`; `kms_ca` is what they trust for the KMS.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn new(bench: &'a Workbench, dir: PathBuf, kms_ca: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self {
            bench,
            dir,
            kms_ca,
            kernel: None,
        })
    }

    /// Builds with the kernel in this folder, not with the one that `enclos build` would take.
    #[must_use]
    pub fn with_kernel(self, kernel: PathBuf) -> Self {
        let kernel = Some(kernel);
        Self { kernel, ..self }
    }

    /// `examples/rust-backend`. `edit` may change the program's bytes.
    ///
    /// # Errors
    /// The build fails.
    pub fn rust_backend(
        &self,
        name: &str,
        edit: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<Image> {
        let mut program = read(&self.bench.guest.join("rust-backend"))?;
        edit(&mut program)?;
        let rootfs = self.dir.join(format!("{name}.rootfs"));
        write_program(&rootfs.join("rust-backend"), &program)?;
        let config = self.example_config(name, "examples/rust-backend")?;
        self.build(name, &rootfs, &config, 256)
    }

    /// `examples/flask-backend`: its packages' root file system with the application added.
    ///
    /// # Errors
    /// The build fails.
    pub fn flask_backend(&self, name: &str) -> Result<Image> {
        self.flask_backend_edited(name, &[], |text| text)
    }

    /// The same with a route that signs, for a KMS with attested signatures; `env`, `NAME = "value",` in TOML, is added to its
    /// environment.
    ///
    /// # Errors
    /// The build fails.
    pub fn flask_signer(&self, name: &str, env: &str) -> Result<Image> {
        let signer = read(&self.bench.path("e2e/guest/python/signer.py"))?;
        let added = [Added::file("app/signer.py", signer)];
        self.flask_backend_edited(name, &added, |text| {
            let text = text.replacen("env = {", &format!("env = {{ {env}"), 1);
            let text = text.replacen("app.py\"]", "signer.py\"]", 1);
            text.replacen("[kms]\n", "[kms]\nattested_signing = true\n", 1)
        })
    }

    /// The same behind attested TLS.
    ///
    /// # Errors
    /// The build fails.
    pub fn flask_backend_with_attested_tls(&self, name: &str) -> Result<Image> {
        let setting = "[ingress]\nattested_tls = [5000]\n";
        self.flask_backend_edited(name, &[], |text| text.replacen("[ingress]\n", setting, 1))
    }

    fn flask_backend_edited(
        &self,
        name: &str,
        more: &[Added],
        edit: impl FnOnce(String) -> String,
    ) -> Result<Image> {
        let app = read(&self.bench.path("examples/flask-backend/app.py"))?;
        let rootfs = self.dir.join(format!("{name}.rootfs.tar"));
        let added = [&[Added::file("app/app.py", app)], more].concat();
        add_to_archive(&self.bench.flask_rootfs, &rootfs, &added)?;
        let config = self.example_config(name, "examples/flask-backend")?;
        fs::write(&config, edit(fs::read_to_string(&config)?))?;
        self.build(name, &rootfs, &config, 512)
    }

    /// The tests' Python clients.
    ///
    /// # Errors
    /// The build fails.
    pub fn python_client(&self, name: &str) -> Result<Image> {
        let app = read(&self.bench.path("e2e/guest/python/nsm_client.py"))?;
        let rootfs = self.dir.join(format!("{name}.rootfs.tar"));
        let added = [Added::file("app/nsm_client.py", app)];
        add_to_archive(&self.bench.client_rootfs, &rootfs, &added)?;
        let config = self.config(name, &["/usr/bin/python3", "/app/nsm_client.py"], "")?;
        self.build(name, &rootfs, &config, 512)
    }

    /// A host with Enclos's own programs, whose application is `e2e/guest/python/cgroups.py`; `inner` is the image that it runs.
    ///
    /// # Errors
    /// The build fails.
    pub fn nested_hypervisor(&self, name: &str, inner: &Image) -> Result<Image> {
        let script = read(&self.bench.path("e2e/guest/python/cgroups.py"))?;
        let host = HostConfig {
            instance: stack::instance(),
            role: None,
            kms: None,
        };
        let interpreter = b"#!/usr/bin/python3\n".as_slice();
        let mut added = vec![
            Added::program("app/engine.py", [interpreter, &script].concat()),
            Added::file("app/host.toml", toml::to_string(&host)?.into_bytes()),
            Added::file("app/inner.eif", read(&inner.eif)?),
        ];
        for program in ["enclos", "enclos-hypervisor", "enclos-vmm"] {
            let bytes = read(&self.bench.bins.join(program))?;
            added.push(Added::program(format!("app/{program}"), bytes));
        }
        let rootfs = self.dir.join(format!("{name}.rootfs.tar"));
        add_to_archive(&self.bench.client_rootfs, &rootfs, &added)?;
        let config = self.config(name, &["/app/engine.py"], "")?;
        self.build(name, &rootfs, &config, 2560)
    }

    /// The tests' program with these arguments; `app` is added to the `[app]` table of enclos.toml.
    ///
    /// # Errors
    /// The build fails.
    pub fn test_program(&self, name: &str, arguments: &[&str], app: &str) -> Result<Image> {
        let rootfs = self.dir.join(format!("{name}.rootfs"));
        let program = read(&self.bench.guest.join("e2e-guest"))?;
        write_program(&rootfs.join("bin/e2e-guest"), &program)?;
        fs::create_dir_all(rootfs.join("etc"))?;
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0::/:/bin/false\nworker:x:1234:4321::/:/bin/false\n",
        )?;
        fs::write(rootfs.join("etc/group"), "root:x:0:\nworkers:x:4321:\n")?;
        let command = [&["/bin/e2e-guest"], arguments].concat();
        let config = self.config(name, &command, app)?;
        self.build(name, &rootfs, &config, 256)
    }

    /// The example's own enclos.toml, with the KMS's authority beside it as the file says.
    fn example_config(&self, name: &str, example: &str) -> Result<PathBuf> {
        let text = fs::read_to_string(self.bench.path(example).join("enclos.toml"))?;
        self.config_file(name, &text)
    }

    fn config(&self, name: &str, command: &[&str], app: &str) -> Result<PathBuf> {
        let app = format!("[app]\ncommand = {command:?}\n{app}\n[ingress]\nports = [5000]\n\n");
        self.kms_config(name, &app)
    }

    /// An enclos.toml that names the KMS, after `more`.
    fn kms_config(&self, name: &str, more: &str) -> Result<PathBuf> {
        let text = format!(
            "{more}[kms]\nregion = {REGION:?}\nserver_name = {SERVER_NAME:?}\nca = \"kms-ca.pem\"\n"
        );
        self.config_file(name, &text)
    }

    fn config_file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let dir = self.dir.join(format!("{name}.config"));
        fs::create_dir_all(&dir)?;
        fs::copy(&self.kms_ca, dir.join("kms-ca.pem"))
            .context("cannot copy the KMS's authority")?;
        let file = dir.join("enclos.toml");
        fs::write(&file, text)?;
        Ok(file)
    }

    /// `examples/flask-backend` as a container image, built from its Dockerfile by `enclos build` with this buildah; what its enclos.toml
    /// would say of the application the image says itself. The context is kept in `name.context`.
    ///
    /// # Errors
    /// The build fails.
    pub fn flask_dockerfile(&self, name: &str, tag: &str, buildah: &Buildah) -> Result<Image> {
        let example = self.bench.path("examples/flask-backend");
        let context = self.dir.join(format!("{name}.context"));
        fs::create_dir_all(&context)?;
        let text = fs::read_to_string(example.join("Dockerfile"))?;
        buildah.import(&self.bench.flask_rootfs, FLASK_BASE)?;
        fs::write(
            context.join("Dockerfile"),
            dockerfile_on(FLASK_BASE, &text)?,
        )?;
        for file in ["app.py", "requirements.txt"] {
            fs::copy(example.join(file), context.join(file))?;
        }
        let mut command = self.bench.program("enclos");
        command
            .arg("build")
            .arg(tag)
            .arg("--docker-dir")
            .arg(context);
        command.envs(buildah.environment());
        self.finish(name, command, &self.kms_config(name, "")?, 512)
    }

    /// A container image of a registry, by digest.
    ///
    /// # Errors
    /// The build fails.
    pub fn pulled(&self, name: &str, reference: &str) -> Result<Image> {
        let mut command = self.bench.program("enclos");
        command.arg("build").arg(reference);
        self.finish(name, command, &self.kms_config(name, "")?, 512)
    }

    fn build(&self, name: &str, rootfs: &Path, config: &Path, memory_mib: u64) -> Result<Image> {
        let mut command = self.bench.program("enclos");
        command
            .arg("build")
            .arg(format!("rootfs:{}", rootfs.display()));
        self.finish(name, command, config, memory_mib)
    }

    /// Runs an `enclos build` that knows its source.
    fn finish(
        &self,
        name: &str,
        mut command: Command,
        config: &Path,
        memory_mib: u64,
    ) -> Result<Image> {
        let eif = self.dir.join(format!("{name}.eif"));
        command.arg("--config").arg(config);
        command.arg("--output").arg(&eif);
        if let Some(kernel) = &self.kernel {
            command.arg("--kernel").arg(kernel);
        }
        let printed = child::read(&mut command, BUILD)?;
        let measurements = measurements(&printed)?;
        Ok(Image {
            eif,
            measurements,
            memory_mib,
        })
    }
}

fn measurements(printed: &str) -> Result<Measurements> {
    let printed: Value = serde_json::from_str(printed).context("`enclos build` prints JSON")?;
    let pcr = |name: &str| {
        let value = printed["Measurements"][name].as_str();
        Ok::<_, anyhow::Error>(
            value
                .with_context(|| format!("no {name} in {printed}"))?
                .to_owned(),
        )
    };
    Ok(Measurements {
        pcr0: pcr("PCR0")?,
        pcr1: pcr("PCR1")?,
        pcr2: pcr("PCR2")?,
        pcr8: None,
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write_program(path: &Path, program: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().context("a program lies in a folder")?)?;
    fs::write(path, program)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// A file that is added to an archive.
#[derive(Clone)]
struct Added {
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
}

impl Added {
    fn file(path: impl Into<PathBuf>, content: Vec<u8>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            content,
        }
    }

    fn program(path: impl Into<PathBuf>, content: Vec<u8>) -> Self {
        let mode = 0o755;
        Self {
            mode,
            ..Self::file(path, content)
        }
    }
}

/// Copies an archive and adds files to it, all of one folder, and that folder. Archives end with two blocks of zeros, which the copy
/// leaves out.
fn add_to_archive(base: &Path, archive: &Path, added: &[Added]) -> Result<()> {
    let mut bytes = read(base)?;
    let used = bytes
        .chunks(512)
        .rposition(|block| block.iter().any(|byte| *byte != 0));
    bytes.truncate((used.context("an archive is not empty")? + 1) * 512);
    let mut file = File::create(archive)?;
    file.write_all(&bytes)?;
    let mut builder = tar::Builder::new(file);
    let folder = added.first().and_then(|file| file.path.parent());
    let folder = folder.context("there is a file, and it lies in a folder")?;
    append(&mut builder, folder, tar::EntryType::Directory, 0o755, &[])?;
    for file in added {
        let kind = tar::EntryType::Regular;
        append(&mut builder, &file.path, kind, file.mode, &file.content)?;
    }
    builder.into_inner()?.flush()?;
    Ok(())
}

fn append(
    to: &mut tar::Builder<File>,
    path: &Path,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len().try_into()?);
    Ok(to.append_data(&mut header, path, content)?)
}

/// Changes one byte of a program: the first letter of the answer that the Rust example gives.
///
/// # Errors
/// The text is not there.
pub fn change_one_byte(program: &mut [u8]) -> Result<()> {
    let text = b"Processed: ";
    let at = program
        .windows(text.len())
        .position(|window| window == text);
    let at = at.context("the program holds the text that it answers with")?;
    ensure!(program[at] != b'p', "changed already");
    program[at] = b'p';
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_added_behind_what_an_archive_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (base, grown) = (dir.path().join("base.tar"), dir.path().join("grown.tar"));
        let mut builder = tar::Builder::new(File::create(&base).unwrap());
        append(
            &mut builder,
            Path::new("old"),
            tar::EntryType::Regular,
            0o644,
            &[7; 600],
        )
        .unwrap();
        builder.into_inner().unwrap();
        add_to_archive(&base, &grown, &[Added::file("app/new", b"new".to_vec())]).unwrap();
        let mut archive = tar::Archive::new(File::open(&grown).unwrap());
        let names = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().into_owned());
        assert_eq!(
            names.collect::<Vec<_>>(),
            ["old", "app", "app/new"].map(PathBuf::from)
        );
    }

    #[test]
    fn exactly_one_byte_changes() {
        let mut program = b"..Processed: {}..".to_vec();
        change_one_byte(&mut program).unwrap();
        assert_eq!(program, b"..processed: {}..");
        assert!(change_one_byte(&mut program).is_err());
    }
}
