//! A PostgreSQL server of a test's own: the machine's `postgres`, on a unix socket in a folder that goes with it.
//!
//! Who has no PostgreSQL is told that a test was skipped. Where `ENCLOS_POSTGRES` is set, as `cargo xtask test` does, that is a
//! failure.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Who runs it when we are root: PostgreSQL refuses to be root.
const USER: &str = "postgres";

/// A server.
pub(crate) struct Postgres {
    /// Ends the server and removes the folder as soon as this process is gone, however it ended.
    watchdog: Child,
    folder: PathBuf,
    programs: PathBuf,
}

impl Postgres {
    /// A new server, or none where PostgreSQL is not installed and need not be.
    #[expect(clippy::print_stderr, reason = "a test that was skipped must say so")]
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(
                std::env::var_os("ENCLOS_POSTGRES").is_none(),
                "required here: apt-get install postgresql"
            );
            eprintln!("SKIPPED: no PostgreSQL: apt-get install postgresql");
            return None;
        };
        let server = Self::empty(programs);
        server.initialize();
        server.run();
        Some(server)
    }

    /// A folder in which a server will be.
    fn empty(programs: PathBuf) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("enclos-pg-")
            .tempdir()
            .unwrap()
            .keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let server = Self {
            watchdog: watchdog(&folder, &programs),
            folder,
            programs,
        };
        server.give(&server.folder);
        server
    }

    /// A standby that follows this server. From now on nothing is acknowledged that it does not have on disk.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::empty(self.programs.clone());
        succeed(
            standby
                .command("pg_basebackup")
                .args(["-U", "kms", "-R", "-X", "stream", "-c", "fast", "-h"])
                .arg(&self.folder)
                .arg("-D")
                .arg(standby.data()),
        );
        let folder = standby.folder.display();
        standby.configure(&format!("unix_socket_directories = '{folder}'\n"));
        standby.run();
        self.psql(
            "postgres",
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
        );
        self.psql("postgres", "SELECT pg_reload_conf()");
        standby
    }

    /// Makes a standby the server that is written.
    pub(crate) fn promote(&self) {
        succeed(
            self.command("pg_ctl")
                .args(["-w", "-t", "60", "-D"])
                .arg(self.data())
                .arg("promote"),
        );
    }

    /// Listens on a port of 127.0.0.1 too, where it has a certificate and wants a password; the port.
    pub(crate) fn listen(&self, certificate: &Path, key: &Path, password: &str) -> u16 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for (from, to) in [(certificate, "server.crt"), (key, "server.key")] {
            let to = self.data().join(to);
            std::fs::copy(from, &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
            self.give(&to);
        }
        let statement = format!("ALTER USER kms PASSWORD '{password}'");
        self.psql("postgres", &statement);
        let rules = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(self.data().join("pg_hba.conf"), rules).unwrap();
        self.configure(&format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nssl = on\n"
        ));
        self.stop();
        self.run();
        port
    }

    /// Files made by us belong to who runs the server.
    fn give(&self, path: &Path) {
        if is_root() {
            succeed(Command::new("chown").arg(USER).arg(path));
        }
    }

    fn initialize(&self) {
        let data = self.data();
        let arguments = ["-U", "kms", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"];
        succeed(
            self.command("initdb")
                .args(arguments)
                .arg("--no-sync")
                .arg("-D")
                .arg(&data),
        );
        let folder = self.folder.display();
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 300\nshared_buffers = '32MB'\n"
        );
        self.configure(&settings);
    }

    /// Adds to what is set.
    fn configure(&self, settings: &str) {
        let mut file = std::fs::File::options()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .unwrap();
        file.write_all(settings.as_bytes()).unwrap();
    }

    /// Starts the server, again if it was stopped.
    pub(crate) fn run(&self) {
        let log = self.folder.join("log");
        succeed(
            self.command("pg_ctl")
                .args(["-w", "-t", "60", "-l"])
                .arg(log)
                .arg("-D")
                .arg(self.data())
                .arg("start"),
        );
    }

    /// Ends the server at once: connections break, nothing is written any more.
    pub(crate) fn stop(&self) {
        succeed(
            self.command("pg_ctl")
                .args(["-w", "-m", "immediate", "-D"])
                .arg(self.data())
                .arg("stop"),
        );
    }

    /// Makes a database; its address.
    pub(crate) fn database(&self, name: &str) -> String {
        let create = format!("CREATE DATABASE \"{name}\"");
        self.psql("postgres", &create);
        self.url(name)
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!(
            "postgres://kms@localhost/{name}?host={}",
            self.folder.display()
        )
    }

    /// Runs a statement as someone would who is no KMS; what it prints.
    pub(crate) fn psql(&self, database: &str, statement: &str) -> String {
        let output = self.try_psql(database, statement);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn try_psql(&self, database: &str, statement: &str) -> Output {
        self.command("psql")
            .args(["-qAt", "-U", "kms", "-v", "ON_ERROR_STOP=1", "-d", database])
            .arg("-h")
            .arg(&self.folder)
            .args(["-c", statement])
            .output()
            .unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = match is_root() {
            false => Command::new(program),
            true => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid", USER, "--regid", USER, "--clear-groups"])
                    .arg(program);
                command
            }
        };
        command.current_dir("/");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ended = self.watchdog.wait();
    }
}

/// A shell that waits until its input ends: when this process does, or when the server is no longer needed.
fn watchdog(folder: &Path, programs: &Path) -> Child {
    let user = if is_root() {
        format!("setpriv --reuid {USER} --regid {USER} --clear-groups ")
    } else {
        String::new()
    };
    let (folder, programs) = (folder.display(), programs.display());
    let script = format!(
        "read -r _; cd /; {user}{programs}/pg_ctl -w -m immediate -D {folder}/data stop; rm -rf {folder}"
    );
    Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Where `initdb` and its like are.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let debian = std::fs::read_dir("/usr/lib/postgresql");
    let versions = debian.into_iter().flatten().flatten();
    folders.extend(versions.map(|version| version.path().join("bin")));
    folders.into_iter().find(|folder| {
        let all = ["initdb", "pg_ctl", "psql"];
        all.iter().all(|program| folder.join(program).exists())
    })
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

fn succeed(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    assert!(output.success(), "{command:?}");
}

type Made = std::sync::Mutex<Vec<(PathBuf, String, String)>>;

static SERVER: OnceLock<Option<Postgres>> = OnceLock::new();
static MADE: Made = Made::new(Vec::new());

/// Runs a statement in the database of a data directory; what it prints.
pub(crate) fn psql(data: &Path, statement: &str) -> String {
    let name = {
        let made = MADE.lock().unwrap();
        let found = made.iter().find(|(known, _, _)| known == data);
        found.map(|(_, name, _)| name.clone()).unwrap()
    };
    let server = SERVER.get().unwrap().as_ref().unwrap();
    server.psql(&name, statement)
}

/// Whether this run is the one on PostgreSQL. What takes long and has nothing to do with the store is tested in the other.
pub(crate) fn is_the_store() -> bool {
    std::env::var_os("ENCLOS_KMS_TEST_STORE").is_some_and(|store| store == "postgres")
}

/// The address of a database of its own for a data directory, made when it is first asked for, if the tests are to run on
/// PostgreSQL: `ENCLOS_KMS_TEST_STORE=postgres`.
pub(crate) fn for_directory(data: &Path) -> Option<String> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    if !is_the_store() {
        return None;
    }
    let server = SERVER
        .get_or_init(Postgres::start)
        .as_ref()
        .expect("PostgreSQL is there, since the tests are to run on it");
    let mut made = MADE.lock().unwrap();
    if let Some((_, _, url)) = made.iter().find(|(known, _, _)| known == data) {
        return Some(url.clone());
    }
    let name = format!("kms{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let url = server.database(&name);
    made.push((data.to_owned(), name, url.clone()));
    Some(url)
}
