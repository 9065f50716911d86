//! Whatever container tool is installed: docker, podman or buildah, tried in this order, to build a Dockerfile and for images that
//! only it can reach.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::codes::Code;
use crate::dirs;
use crate::failure::{Failure, Outcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
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

    /// Those that are installed and work: a docker client without its daemon does not.
    fn working() -> impl Iterator<Item = Self> {
        let installed = |tool: &Self| dirs::in_path(tool.name()).is_some();
        let works = |tool: &Self| tool.quietly(&["images".as_ref()]);
        Self::ALL.into_iter().filter(installed).filter(works)
    }

    /// The first that has the image in its store.
    pub(super) fn having(reference: &str) -> Option<Self> {
        Self::working().find(|tool| match tool {
            Self::Buildah => tool.quietly(&[
                "inspect".as_ref(),
                "--type".as_ref(),
                "image".as_ref(),
                reference.as_ref(),
            ]),
            _ => tool.quietly(&["image".as_ref(), "inspect".as_ref(), reference.as_ref()]),
        })
    }

    /// Builds `reference` from the Dockerfile in `folder` with the first that works. The image says that it and all its files
    /// are of the time `epoch`: otherwise every build gives another image, whose configuration is part of ours.
    pub(super) fn build(reference: &str, folder: &Path, epoch: u32) -> Outcome<Self> {
        let tool = Self::working().next().ok_or_else(|| {
            Failure::aws_text(Code::DOCKER_BUILD, "cannot build a Dockerfile: none of docker, podman and buildah is installed and working")
                .hint("install one (buildah needs no daemon), or give a file instead: an OCI archive or layout, a `docker save` archive, a root file system")
        })?;
        let timestamp = format!("--timestamp={epoch}");
        let mut args: Vec<&OsStr> = vec!["build".as_ref(), "-t".as_ref(), reference.as_ref()];
        if tool != Self::Docker {
            args.push(timestamp.as_ref());
        }
        args.push(folder.as_ref());
        let mut command = Command::new(tool.name());
        command.args(args);
        match tool {
            // BuildKit takes the time from there; builders before it take none.
            Self::Docker => command.env("SOURCE_DATE_EPOCH", epoch.to_string()),
            // Of two times newer ones could not choose.
            Self::Podman | Self::Buildah => command.env_remove("SOURCE_DATE_EPOCH"),
        };
        let purpose = format!("build the image {reference}");
        tool.run(command, Code::DOCKER_BUILD, &purpose)?;
        Ok(tool)
    }

    /// Writes `reference` to `archive` in the format of `docker save`.
    pub(super) fn save(self, reference: &str, archive: &Path) -> Outcome {
        let target = format!("docker-archive:{}:{reference}", archive.display());
        let args: &[&OsStr] = match self {
            Self::Docker => &[
                "save".as_ref(),
                "-o".as_ref(),
                archive.as_ref(),
                reference.as_ref(),
            ],
            Self::Podman => &[
                "save".as_ref(),
                "--format".as_ref(),
                "docker-archive".as_ref(),
                "-o".as_ref(),
                archive.as_ref(),
                reference.as_ref(),
            ],
            Self::Buildah => &["push".as_ref(), reference.as_ref(), target.as_ref()],
        };
        let mut command = Command::new(self.name());
        command.args(args);
        let purpose = format!("save the image {reference}");
        self.run(command, Code::DOCKER_PULL, &purpose)
    }

    /// Runs the tool with its output on our stderr: progress is for people, stdout is for the result.
    fn run(self, mut command: Command, code: Code, purpose: &str) -> Outcome {
        let name = self.name();
        let status = command
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .status()
            .map_err(|error| {
                Failure::aws(
                    code,
                    anyhow::Error::new(error).context(format!("cannot run {name} to {purpose}")),
                )
            })?;
        match status.success() {
            true => Ok(()),
            false => Err(Failure::aws_text(
                code,
                format_args!("{name} could not {purpose}; it says why above"),
            )),
        }
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
