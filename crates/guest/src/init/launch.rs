//! Starts the application with the semantics of an OCI runtime.
//!
//! init forks; the child makes itself a mount namespace whose `/` is the image's root file system, takes on the
//! user, group, working directory and environment, and executes the command. Until then a close-on-exec pipe
//! leads back to init: its end without a byte means that the command runs, anything else says why not.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use enclos_api::config::{EnclaveConfig, Kms, ROOTFS_PATH};
use rustix::fs::{Access, Gid, Uid};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

use super::user::{Identity, UserError};
use super::{InitError, env, mounts, names, user};
use crate::{log, sys};

/// Exit status of a command that was found and cannot be executed, as shells have it.
const CANNOT_EXECUTE: i32 = 126;
/// Exit status of a command that was not found, as shells have it.
const NOT_FOUND: i32 = 127;
/// Exit status when the surroundings of the command could not be made, as container engines have it.
const NOT_PREPARED: i32 = 125;

/// Open files: the soft limit suits servers, and no library loops over all of them for long.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// The application did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotStarted {
    /// Exit status by the shells' convention.
    pub(super) status: i32,
    /// One sentence.
    pub(super) reason: String,
}

/// Why the child could not become the application.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("cannot prepare the application's root file system")]
    Root(#[from] InitError),
    #[error("cannot find out who runs the application")]
    User(#[from] UserError),
    #[error("cannot {action}")]
    Prepare {
        action: &'static str,
        #[source]
        source: Errno,
    },
    #[error("cannot write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot enter the working directory {cwd}")]
    WorkingDirectory {
        cwd: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot execute {command}: {}{hint}", errno_text(error))]
    Execute {
        command: String,
        error: io::Error,
        hint: String,
    },
}

impl LaunchError {
    fn status(&self) -> i32 {
        match self {
            Self::Execute { error, .. } if error.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            Self::Execute { .. } => CANNOT_EXECUTE,
            _ => NOT_PREPARED,
        }
    }
}

/// The system's words for an error, without Rust's number behind them.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Starts the application and returns its process id once its command runs. It writes to `output`, or else to the console.
pub(super) fn start(config: &EnclaveConfig, output: Option<PipeWriter>) -> Result<Pid, NotStarted> {
    let failed = |error: io::Error| NotStarted {
        status: NOT_PREPARED,
        reason: format!("cannot start a process for the application: {error}"),
    };
    let (reader, writer) = io::pipe().map_err(failed)?;
    match sys::fork().map_err(failed)? {
        sys::Fork::Child => {
            drop(reader);
            child(config, output, writer)
        }
        sys::Fork::Parent(pid) => {
            drop(writer);
            read_outcome(reader).map(|()| pid)
        }
    }
}

/// The status as one byte, then the reason; nothing at all when the command runs.
fn read_outcome(mut reader: PipeReader) -> Result<(), NotStarted> {
    let mut bytes = Vec::new();
    drop(Read::by_ref(&mut reader).take(4096).read_to_end(&mut bytes));
    match bytes.split_first() {
        None => Ok(()),
        Some((status, reason)) => Err(NotStarted {
            status: i32::from(*status),
            reason: String::from_utf8_lossy(reason).into_owned(),
        }),
    }
}

fn child(config: &EnclaveConfig, output: Option<PipeWriter>, mut writer: PipeWriter) -> ! {
    let Err(error) = become_application(config, output);
    let status = error.status();
    let mut bytes = vec![u8::try_from(status).unwrap_or(u8::MAX)];
    bytes.extend(log::chain(&error).bytes());
    drop(writer.write_all(&bytes));
    sys::exit_now(status)
}

fn become_application(
    config: &EnclaveConfig,
    output: Option<PipeWriter>,
) -> Result<std::convert::Infallible, LaunchError> {
    if let Some(output) = output {
        prepare("redirect the application's output", redirect(&output))?;
    }
    let process = &config.process;
    prepare("start a session", rustix::process::setsid().map(drop))?;
    prepare(
        "make a mount namespace",
        sys::unshare_mounts().map_err(errno),
    )?;
    mounts::enter(Path::new(ROOTFS_PATH))?;
    let hostname = write_files(config.kms.as_ref())?;
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let identity = user::resolve(&process.user, &text("/etc/passwd"), &text("/etc/group"))?;
    let env = env::complete(&process.env, &identity.home, &hostname, config.kms.as_ref());
    prepare("unblock signals", sys::unblock_all_signals().map_err(errno))?;
    enter_directory(&process.cwd)?;
    take_on(&identity)?;
    Err(execute(&process.argv, &env))
}

fn redirect(output: &PipeWriter) -> Result<(), Errno> {
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(output)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn prepare(action: &'static str, result: Result<(), Errno>) -> Result<(), LaunchError> {
    result.map_err(|source| LaunchError::Prepare { action, source })
}

/// Gives the application names that work where there is no network; returns the host name.
fn write_files(kms: Option<&Kms>) -> Result<String, LaunchError> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let hostname = names::hostname(read("/etc/hostname").as_deref());
    prepare(
        "set the host name",
        rustix::system::sethostname(hostname.as_bytes()),
    )?;
    let hosts = names::hosts(read("/etc/hosts").as_deref(), &hostname, kms);
    let files = [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts),
        ("/etc/resolv.conf", names::RESOLV_CONF.to_owned()),
    ];
    for (path, text) in files {
        mounts::replace_file(Path::new(path), &text).map_err(|source| LaunchError::File {
            path: path.into(),
            source,
        })?;
    }
    Ok(hostname)
}

fn enter_directory(cwd: &str) -> Result<(), LaunchError> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let enter = || {
        std::fs::create_dir_all(cwd)?;
        std::env::set_current_dir(cwd)
    };
    enter().map_err(|source| LaunchError::WorkingDirectory {
        cwd: cwd.to_owned(),
        source,
    })
}

/// Limits, ownership of the console, then groups and user; last of all, no way back for anyone but root.
fn take_on(identity: &Identity) -> Result<(), LaunchError> {
    use rustix::thread::{
        set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    };
    let (current, maximum) = (Some(OPEN_FILES.0), Some(OPEN_FILES.1));
    let limit = Rlimit { current, maximum };
    prepare(
        "raise the limit of open files",
        rustix::process::setrlimit(Resource::Nofile, limit),
    )?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    own_console(uid);
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    prepare("set the supplementary groups", set_thread_groups(&groups))?;
    prepare("set the group", set_thread_res_gid(gid, gid, gid))?;
    prepare("set the user", set_thread_res_uid(uid, uid, uid))?;
    if uid.is_root() {
        return Ok(());
    }
    prepare("forbid new privileges", set_no_new_privs(true))
}

/// `/dev/stdout` is opened anew by programs that log to it: they must be allowed to, be it the console or a pipe to the agent.
/// `/dev/null` is anyone's already.
fn own_console(uid: Uid) {
    let console = rustix::fs::fstat(rustix::stdio::stdout());
    let null = rustix::fs::stat("/dev/null");
    if let (Ok(console), Ok(null)) = (console, null)
        && console.st_rdev != null.st_rdev
    {
        let _ = rustix::fs::fchown(rustix::stdio::stdout(), Some(uid), None);
    }
}

/// Executes the command; returns only with the reason why it did not.
fn execute(argv: &[String], env: &[(String, String)]) -> LaunchError {
    let name = argv.first().map_or("", String::as_str);
    let path = match find(name, env::get(env, "PATH").unwrap_or_default()) {
        Ok(path) => path,
        Err(error) => return error,
    };
    if let Ok(null) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(null);
    }
    let mut command = Command::new(&path);
    command.arg0(name).args(argv.iter().skip(1)).env_clear();
    command.envs(env.iter().map(|(name, value)| (name, value)));
    let error = command.exec();
    let found = path.exists() && error.kind() == io::ErrorKind::NotFound;
    let hint = if found {
        " (its interpreter or dynamic loader is not in the image)"
    } else {
        ""
    };
    LaunchError::Execute {
        command: path.display().to_string(),
        error,
        hint: hint.to_owned(),
    }
}

/// Looks a command up as `execvp` does: a name with a slash is a path, any other is looked for in `PATH`.
fn find(name: &str, path: &str) -> Result<PathBuf, LaunchError> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let mut error = Errno::NOENT;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = Path::new(dir).join(name);
        match rustix::fs::access(&candidate, Access::EXEC_OK) {
            Ok(()) if candidate.is_file() => return Ok(candidate),
            Err(Errno::ACCESS) => error = Errno::ACCESS,
            _ => {}
        }
    }
    let hint = format!(" in PATH {path}");
    Err(LaunchError::Execute {
        command: name.to_owned(),
        error: error.into(),
        hint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(error: &LaunchError) -> (i32, String) {
        (error.status(), log::chain(error))
    }

    #[test]
    fn a_missing_command_is_127_and_says_so() {
        let error = execute(&["/nonexistent/x".into()], &[]);
        let text = "cannot execute /nonexistent/x: No such file or directory";
        assert_eq!(outcome(&error), (127, text.into()));
        let error = find("no-such-command", "/nonexistent:/usr").unwrap_err();
        let text =
            "cannot execute no-such-command: No such file or directory in PATH /nonexistent:/usr";
        assert_eq!(outcome(&error), (127, text.into()));
    }

    #[test]
    fn a_command_that_cannot_be_executed_is_126() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plain"), "text").unwrap();
        let path = dir.path().join("plain").display().to_string();
        let (status, text) = outcome(&execute(&[path], &[]));
        assert_eq!(status, 126);
        assert!(text.ends_with("Permission denied"), "{text}");
        let error = find("plain", &dir.path().display().to_string()).unwrap_err();
        assert_eq!(error.status(), 126);
    }

    #[test]
    fn a_missing_interpreter_is_told_from_a_missing_command() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        std::fs::write(&path, "#!/nonexistent/python\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (status, text) = outcome(&execute(&[path.display().to_string()], &[]));
        assert_eq!(status, 127);
        assert!(text.contains("interpreter"), "{text}");
    }

    #[test]
    fn the_path_is_searched_in_order_and_directories_are_no_commands() {
        let found = find("sh", "/nonexistent:/usr/bin:/bin").unwrap();
        assert_eq!(found, Path::new("/usr/bin/sh"));
        assert!(find("bin", "/usr").is_err());
        assert_eq!(find("./x", "/bin").unwrap(), Path::new("./x"));
    }

    #[test]
    fn the_pipe_carries_status_and_reason() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[127]).unwrap();
        writer.write_all(b"cannot execute /x").unwrap();
        drop(writer);
        let reason = "cannot execute /x".to_owned();
        assert_eq!(
            read_outcome(reader),
            Err(NotStarted {
                status: 127,
                reason
            })
        );
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        assert_eq!(read_outcome(reader), Ok(()));
    }
}
