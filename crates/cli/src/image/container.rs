//! Whatever container tool is installed, as a source of image archives: docker, podman or buildah, tried
//! in this order.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::codes::Code;
use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Docker,
    Podman,
    Buildah,
}

impl Tool {
    const ALL: [Self; 3] = [Self::Docker, Self::Podman, Self::Buildah];

    fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Buildah => "buildah",
        }
    }

    /// The first that is installed and works: a docker client without its daemon does not.
    fn find() -> Option<Self> {
        let installed = Self::ALL
            .into_iter()
            .filter(|tool| dirs::in_path(tool.name()).is_some());
        installed
            .into_iter()
            .find(|tool| tool.quietly(&["images".as_ref()]))
    }

    /// Runs the tool with its output on our stderr: progress is for people, stdout is for the result.
    fn run(self, args: &[&OsStr]) -> std::io::Result<bool> {
        let status = Command::new(self.name())
            .args(args)
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .status()?;
        Ok(status.success())
    }

    fn quietly(self, args: &[&OsStr]) -> bool {
        let mut command = Command::new(self.name());
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

/// Builds `reference` from the Dockerfile in `folder`.
pub(super) fn build(reference: &str, folder: &Path) -> Outcome {
    let tool = need(Code::DOCKER_BUILD, "build a Dockerfile")?;
    let args: [&OsStr; 4] = [
        "build".as_ref(),
        "-t".as_ref(),
        reference.as_ref(),
        folder.as_ref(),
    ];
    done(
        tool,
        tool.run(&args),
        Code::DOCKER_BUILD,
        format!("build the image {reference}"),
    )
}

/// Sees to it that `reference` is in the tool's local store.
pub(super) fn ensure(reference: &str) -> Outcome {
    let tool = need(Code::DOCKER_PULL, &format!("fetch the image {reference}"))?;
    let inspect: &[&OsStr] = match tool {
        Tool::Buildah => &[
            "inspect".as_ref(),
            "--type".as_ref(),
            "image".as_ref(),
            reference.as_ref(),
        ],
        _ => &["image".as_ref(), "inspect".as_ref(), reference.as_ref()],
    };
    if tool.quietly(inspect) {
        term::note("Using the locally available Docker image...");
        return Ok(());
    }
    let pulled = tool.run(&["pull".as_ref(), reference.as_ref()]);
    done(
        tool,
        pulled,
        Code::DOCKER_PULL,
        format!("fetch the image {reference}"),
    )
}

/// Writes `reference` to `archive` in the format of `docker save`.
pub(super) fn save(reference: &str, archive: &Path) -> Outcome {
    let tool = need(Code::DOCKER_PULL, &format!("save the image {reference}"))?;
    let saved = match tool {
        Tool::Docker => tool.run(&[
            "save".as_ref(),
            "-o".as_ref(),
            archive.as_ref(),
            reference.as_ref(),
        ]),
        Tool::Podman => tool.run(&[
            "save".as_ref(),
            "--format".as_ref(),
            "docker-archive".as_ref(),
            "-o".as_ref(),
            archive.as_ref(),
            reference.as_ref(),
        ]),
        Tool::Buildah => {
            let target = format!("docker-archive:{}:{reference}", archive.display());
            tool.run(&["push".as_ref(), reference.as_ref(), target.as_ref()])
        }
    };
    done(
        tool,
        saved,
        Code::DOCKER_PULL,
        format!("save the image {reference}"),
    )
}

fn need(code: Code, purpose: &str) -> Outcome<Tool> {
    Tool::find().ok_or_else(|| {
        let text = format!("cannot {purpose}: none of docker, podman and buildah is installed and working");
        Failure::aws_text(code, text).hint(
            "install one, or give a file instead: an OCI archive or layout, a `docker save` archive, a root file system",
        )
    })
}

fn done(tool: Tool, ran: std::io::Result<bool>, code: Code, purpose: String) -> Outcome {
    let name = tool.name();
    match ran {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::aws_text(
            code,
            format_args!("{name} could not {purpose}; it says why above"),
        )),
        Err(error) => Err(Failure::aws(
            code,
            anyhow::Error::new(error).context(format!("cannot run {name} to {purpose}")),
        )),
    }
}
