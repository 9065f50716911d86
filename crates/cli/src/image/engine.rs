//! Images that a Docker or Podman engine has, over its socket: no container tool has to be installed for that.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// An engine that says nothing for so long is given up; exporting a large image takes its time to begin.
const SILENCE: Duration = Duration::from_secs(120);

/// Largest answer to a question (bytes).
const MAX_ANSWER: usize = 4 << 20;

/// An engine that answers.
pub(super) struct Engine(PathBuf);

impl Engine {
    /// Every engine whose socket this user may open.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let open = |path: &PathBuf| std::os::unix::net::UnixStream::connect(path).is_ok();
        sockets(&|name| std::env::var(name).ok())
            .into_iter()
            .filter(open)
            .map(Self)
    }

    /// Writes the image to `archive` in the format of `docker save`; false when the engine does not have it.
    pub(super) fn save(&self, reference: &str, archive: &Path) -> anyhow::Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let saved = runtime.block_on(self.export(reference, archive));
        saved.with_context(|| {
            format!(
                "the engine at {} does not give out {reference}",
                self.0.display()
            )
        })
    }

    async fn export(&self, reference: &str, archive: &Path) -> anyhow::Result<bool> {
        let name = escaped(reference);
        let answer = self.get(&format!("/images/{name}/json")).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        accepted(answer).await?;
        let mut body = accepted_stream(self.get(&format!("/images/{name}/get")).await?).await?;
        let mut file = File::create_new(archive)?;
        while let Some(frame) = timeout(SILENCE, body.frame()).await? {
            if let Ok(bytes) = frame?.into_data() {
                file.write_all(&bytes)?;
            }
        }
        Ok(true)
    }

    /// One connection for each request: there are two.
    async fn get(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.0).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())?;
        Ok(timeout(SILENCE, sender.send_request(request)).await??)
    }
}

async fn accepted_stream(answer: Response<Incoming>) -> anyhow::Result<Incoming> {
    match answer.status().is_success() {
        true => Ok(answer.into_body()),
        false => Err(accepted(answer)
            .await
            .err()
            .unwrap_or_else(|| anyhow::anyhow!("no answer"))),
    }
}

/// Reads an answer to its end; one that is no success becomes the engine's own words.
async fn accepted(answer: Response<Incoming>) -> anyhow::Result<()> {
    let status = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
    let bytes = timeout(SILENCE, body.collect()).await?;
    if status.is_success() {
        return Ok(());
    }
    let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes.to_bytes()).trim().to_owned());
    bail!("it answered {status}: {}", text.unwrap_or_default())
}

/// Where engines listen: what the user says, then the usual places.
fn sockets(variable: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let mut sockets = Vec::new();
    for name in ["DOCKER_HOST", "CONTAINER_HOST"] {
        let host = variable(name);
        sockets.extend(
            host.as_deref()
                .and_then(|host| host.strip_prefix("unix://"))
                .map(PathBuf::from),
        );
    }
    sockets.push("/var/run/docker.sock".into());
    sockets.push("/run/podman/podman.sock".into());
    if let Some(runtime) = variable("XDG_RUNTIME_DIR").map(PathBuf::from) {
        sockets.push(runtime.join("docker.sock"));
        sockets.push(runtime.join("podman/podman.sock"));
    }
    sockets
}

/// A reference as a part of a path: its slashes and colons are the engine's to understand.
fn escaped(reference: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/:@._-".contains(&b);
    reference
        .bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_says_comes_first() {
        let vars = |name: &str| match name {
            "DOCKER_HOST" => Some("unix:///a.sock".to_owned()),
            "CONTAINER_HOST" => Some("tcp://127.0.0.1:2375".to_owned()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".to_owned()),
            _ => None,
        };
        let sockets = sockets(&vars);
        assert_eq!(sockets[0], Path::new("/a.sock"));
        assert_eq!(
            sockets.last().unwrap(),
            Path::new("/run/user/7/podman/podman.sock")
        );
        assert_eq!(sockets.len(), 5);
    }

    #[test]
    fn a_reference_stays_inside_its_path() {
        assert_eq!(
            escaped("localhost:5000/a/b:1@sha256:00"),
            "localhost:5000/a/b:1@sha256:00"
        );
        assert_eq!(escaped("a?b#c d\r\n"), "a%3Fb%23c%20d%0D%0A");
    }
}
