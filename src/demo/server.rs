//! A throwaway Postgres server, for `outbox-relay demo` and for the tests.
//!
//! Guarantees: the server listens on 127.0.0.1 only, lives in a folder of its own, and runs in a process group of its
//! own, so that Ctrl-C in the terminal does not take it away before the relay has drained. When its [`Server`] is
//! dropped, and even when this process is killed, its processes end and its folder goes (`guard.rs`). Its port stays the
//! same through every [`Server::kill`], [`Server::restart`] and [`Server::go_back_to`].
//!
//! It does not keep data: [`Options::for_tests`] even turns fsync off, which survives a killed process, not a power cut.

mod binaries;
pub(super) mod guard;
mod process;
mod replica;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::time::sleep;
use uuid::Uuid;

pub use self::binaries::Binaries;
use self::guard::Guard;
use self::process::Account;

/// How often a state that nobody announces (a process that ended, a line in a file) is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// For a start or a stop; recovery after a kill is part of a start.
const DEADLINE: Duration = Duration::from_secs(60);
/// Below the ports that Linux and macOS give to outgoing connections: a client that keeps trying the port of a server
/// that is down could otherwise be given that very port, connect to itself, and keep the server from coming back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What kind of server is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Part of the folder's name, and of messages.
    pub name: String,
    /// Where the folder is made; `None`: the system's place for temporary files.
    pub parent: Option<PathBuf>,
    /// Whether connecting needs the password that [`Server::url`] carries. Without, everybody on this machine is superuser.
    pub password: bool,
    /// Further lines of `postgresql.conf`, later ones win.
    pub settings: Vec<(String, String)>,
    /// Size of a file of the log. Small ones make a new server, and its snapshots, quick to write; large ones what is written.
    pub wal_segment_megabytes: u32,
}

impl Options {
    /// A server for the demo: asks for a password, and writes safely.
    pub fn new(name: &str) -> Self {
        let settings = [
            ("max_connections", "200"),
            // In the server's own folder rather than in /dev/shm, where a killed server would leave it (and which
            // containers keep small).
            ("dynamic_shared_memory_type", "mmap"),
            ("unix_socket_directories", "''"),
            ("listen_addresses", "'127.0.0.1'"),
            ("shared_buffers", "'64MB'"),
            ("log_line_prefix", "'%m [%p] %d '"),
        ];
        Self {
            name: name.to_owned(),
            parent: None,
            password: true,
            settings: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            wal_segment_megabytes: 1,
        }
    }

    /// A server for tests: no password, no fsync, prepared transactions allowed.
    pub fn for_tests(name: &str) -> Self {
        Self { password: false, ..Self::new(name) }
            .with("fsync", "off")
            .with("full_page_writes", "off")
            .with("max_prepared_transactions", "20")
    }

    /// Adds a line to `postgresql.conf`; the value as it is to stand there, quotes included.
    #[must_use]
    pub fn with(mut self, setting: &str, value: &str) -> Self {
        self.settings.push((setting.to_owned(), value.to_owned()));
        self
    }
}

/// How a server is asked to stop; Postgres' own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Waits until all clients are gone.
    Smart,
    /// Ends all sessions, writes a checkpoint.
    Fast,
    /// Ends all at once; recovery is due at the next start.
    Immediate,
}

/// A copy of a server as it was at a moment: see [`Server::go_back_to`]. Gone when its server is.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
}

impl Snapshot {
    /// Removes it, before its server goes.
    ///
    /// # Errors
    /// Its files cannot be removed.
    pub fn discard(self) -> io::Result<()> {
        fs::remove_dir_all(self.dir)
    }
}

/// A running (or stopped, or frozen) server; dropping it ends it and removes its folder.
#[derive(Debug)]
pub struct Server {
    name: String,
    binaries: Binaries,
    account: Option<Account>,
    dir: PathBuf,
    port: u16,
    password: Option<String>,
    postmaster: Option<Child>,
    snapshots: u32,
    /// Last, so that it goes after the rest.
    guard: Guard,
}

impl Server {
    /// Makes a new, empty server and waits until it takes connections. It has the superuser and the database `postgres`.
    ///
    /// # Errors
    /// No Postgres is installed, or it does not start: then with the end of its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let password = options.password.then(|| Uuid::new_v4().simple().to_string());
        let mut server = Server::housed(&options.name, options.parent.as_deref(), password)?;
        server.initdb(&options).await?;
        server.launch_on_a_free_port().await?;
        Ok(server)
    }

    /// A folder of its own, and nothing in it yet.
    fn housed(name: &str, parent: Option<&Path>, password: Option<String>) -> anyhow::Result<Self> {
        let binaries = Binaries::find()?;
        let account = Account::for_server()?;
        let parent = match parent {
            Some(parent) => parent.to_owned(),
            None => process::temporary_folder(account.as_ref())?,
        };
        let dir = parent.join(format!("outbox-relay-{name}-{}", Uuid::new_v4().simple()));
        let guard = Guard::make(&dir)
            .with_context(|| format!("cannot create the folder {} for a Postgres server", dir.display()))?;
        let server = Self {
            guard,
            name: name.to_owned(),
            binaries,
            account,
            dir,
            port: 0,
            password,
            postmaster: None,
            snapshots: 0,
        };
        if let Some(account) = &server.account {
            chown(&server.dir, Some(account.uid), Some(account.gid))?;
        }
        Ok(server)
    }

    /// The address of a database of this server, for its superuser.
    pub fn url(&self, database: &str) -> String {
        let password = self.password.as_ref().map(|p| format!(":{p}")).unwrap_or_default();
        format!("postgres://postgres{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// The superuser's password; `None`: none is asked for.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Its port, which never changes.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of its postmaster; `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }

    /// Its folder, which is removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which binaries it runs on.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Stops it in Postgres' own way and waits until it has ended; nothing if it is down.
    ///
    /// # Errors
    /// It has not ended within a minute (with [`Mode::Smart`]: a client stayed).
    pub async fn stop(&mut self, mode: Mode) -> anyhow::Result<()> {
        let Some(postmaster) = &mut self.postmaster else { return Ok(()) };
        process::signal(postmaster.id(), mode.signal());
        let until = Instant::now() + DEADLINE;
        while postmaster.try_wait()?.is_none() {
            if Instant::now() > until {
                bail!("the {} server has not stopped within {DEADLINE:?}\n{}", self.name, self.log_tail());
            }
            sleep(LOOK).await;
        }
        self.guard.ended(postmaster.id())?;
        self.postmaster = None;
        Ok(())
    }

    /// Kills all of its processes (SIGKILL) and returns when they are gone; nothing if it is down. Works on a frozen one.
    pub async fn kill(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else { return };
        let mut left = process::kill_tree(&mut postmaster);
        while !left.is_empty() {
            left.retain(|&pid| process::is_alive(pid));
            sleep(LOOK).await;
        }
        // Its shell is there as long as we are.
        let _ = self.guard.ended(postmaster.id());
        self.tidy_after_kill();
    }

    /// Starts it again on its port, stopping it first (fast) if it runs.
    ///
    /// # Errors
    /// It does not stop, or not start: then with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop(Mode::Fast).await?;
        self.launch().await
    }

    /// Freezes all of its processes (SIGSTOP): connections stay open, nothing answers. Like a host that hangs.
    pub fn freeze(&self) {
        if let Some(pid) = self.pid() {
            process::freeze_tree(pid);
        }
    }

    /// Undoes [`Self::freeze`].
    pub fn thaw(&self) {
        if let Some(pid) = self.pid() {
            process::thaw_tree(pid);
        }
    }

    /// Creates an empty database.
    ///
    /// # Errors
    /// It exists already, or the server does not answer.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let name = name.replace('"', "\"\"");
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).await?;
        connection.close().await?;
        Ok(())
    }

    /// Copies the running server as it is now: what a replica has that from now on receives nothing more.
    ///
    /// # Errors
    /// `pg_basebackup` failed: with what it said.
    pub async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        self.snapshots += 1;
        let dir = self.dir.join(format!("snapshot-{}", self.snapshots));
        self.copy_to(&dir).await?;
        // Started with this file, a server ends its recovery the way a promoted replica does: on a new timeline.
        File::create(dir.join("recovery.signal"))?;
        Ok(Snapshot { dir })
    }

    async fn copy_to(&self, folder: &Path) -> anyhow::Result<()> {
        let mut command = self.worker(&self.binaries.path("pg_basebackup"));
        command.arg("--pgdata").arg(folder).args(["--host=127.0.0.1", "--username=postgres", "--no-password"]);
        command.arg(format!("--port={}", self.port)).env("PGPASSWORD", self.password.as_deref().unwrap_or_default());
        command.args(["--checkpoint=fast", "--no-sync", "--no-manifest", "--wal-method=stream"]);
        self.run(command, "pg_basebackup").await
    }

    /// The server dies, and a replica that had received nothing since the snapshot takes over, on the same port: commits
    /// since then are lost; identity, port and databases are the same. A snapshot may be used again.
    ///
    /// # Errors
    /// It does not start: with the end of its log.
    pub async fn go_back_to(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        self.kill().await;
        let data = self.dir.join("data");
        fs::remove_dir_all(&data)?;
        let mut copy = self.worker(Path::new("cp"));
        copy.arg("-Rp").arg(&snapshot.dir).arg(&data);
        self.run(copy, "cp").await?;
        self.launch().await
    }

    async fn initdb(&self, options: &Options) -> anyhow::Result<()> {
        let mut command = self.worker(&self.binaries.path("initdb"));
        command.arg("--pgdata").arg(self.dir.join("data"));
        command.args(["--username=postgres", "--no-locale", "--encoding=UTF8", "--no-sync"]);
        command.arg(format!("--wal-segsize={}", options.wal_segment_megabytes));
        if let Some(password) = &self.password {
            let file = self.dir.join("password");
            fs::write(&file, password)?;
            if let Some(account) = &self.account {
                chown(&file, Some(account.uid), Some(account.gid))?;
            }
            command.arg("--auth=scram-sha-256").arg("--pwfile").arg(&file);
        } else {
            command.arg("--auth=trust");
        }
        self.run(command, "initdb").await?;
        let mut file = File::options().append(true).open(self.dir.join("data/postgresql.conf"))?;
        for (setting, value) in &options.settings {
            writeln!(file, "{setting} = {value}")?;
        }
        // For snapshots: there is nothing to fetch, which ends the recovery, and nobody is let in before, only to read.
        writeln!(file, "restore_command = 'false'\nrecovery_target_timeline = 'current'\nhot_standby = off")?;
        Ok(())
    }

    async fn launch_on_a_free_port(&mut self) -> anyhow::Result<()> {
        // Somebody else may take the port between the look and the server's own bind: then it ends and another is tried.
        for _ in 0..10 {
            self.port = free_port()?;
            match self.launch().await {
                Err(_) if self.log_tail().contains("could not create any TCP/IP sockets") => {}
                result => return result,
            }
        }
        bail!("found no free port for the {} server\n{}", self.name, self.log_tail())
    }

    /// Starts the postmaster and waits until it says, in the file that `pg_ctl --wait` reads too, that it is ready.
    async fn launch(&mut self) -> anyhow::Result<()> {
        let log = File::create(self.dir.join("log"))?;
        let mut command = self.worker(&self.binaries.path("postgres")).into_std();
        command.arg("-D").arg(self.dir.join("data")).arg("-p").arg(self.port.to_string());
        command.stdout(log.try_clone()?).stderr(log);
        let mut postmaster = command.spawn().context("cannot start postgres")?;
        if let Some(told) = postmaster.stdin.take() {
            self.begin(postmaster.id(), told).context("cannot start postgres")?;
        }
        let until = Instant::now() + DEADLINE;
        let ready = loop {
            if postmaster.try_wait()?.is_some() {
                self.guard.ended(postmaster.id())?;
                bail!("the {} server has ended while it started\n{}", self.name, self.log_tail());
            }
            if self.says_ready(postmaster.id()) {
                break true;
            }
            if Instant::now() > until {
                break false;
            }
            // Should this future be dropped here, the server must not be forgotten.
            self.postmaster = Some(postmaster);
            sleep(LOOK).await;
            match self.postmaster.take() {
                Some(it) => postmaster = it,
                None => bail!("the {} server was taken away while it started", self.name),
            }
        };
        let id = postmaster.id();
        self.postmaster = Some(postmaster);
        if ready {
            self.guard.serves(id)?;
        } else {
            bail!("the {} server is not ready after {DEADLINE:?}\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    fn says_ready(&self, pid: u32) -> bool {
        let file = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        lines.next() == Some(&pid.to_string()) && lines.nth(6).is_some_and(|state| state.trim_end() == "ready")
    }

    /// What a killed server leaves outside its folder, and the lock file, lest its process id be somebody else's by then.
    fn tidy_after_kill(&self) {
        let lock = self.dir.join("data/postmaster.pid");
        let file = fs::read_to_string(&lock).unwrap_or_default();
        if let Some(shared_memory) = file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let mut ipcrm = std::process::Command::new("ipcrm");
            ipcrm.args(["-m", shared_memory]).stdout(Stdio::null()).stderr(Stdio::null());
            // Best effort: without ipcrm, 56 bytes stay until the machine restarts.
            let _ = ipcrm.status();
        }
        let _ = fs::remove_file(lock);
    }

    /// A command that runs as the server's account, in the server's folder, untouched by the caller's `PG…` variables.
    fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command.env("LC_ALL", "C").current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// A program that works in the server's folder, and in a process group of its own. It begins when it is [told to](Self::begin), and not at
    /// all if this process is gone by then.
    fn worker(&self, program: &Path) -> tokio::process::Command {
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-c", r#"read -r _ && exec "$0" "$@" < /dev/null"#]).arg(program);
        command.process_group(0).stdin(Stdio::piped());
        command
    }

    /// Lets a worker begin, of whom the guard knows from now on.
    fn begin(&self, id: u32, mut told: impl Write) -> io::Result<()> {
        self.guard.works(id)?;
        told.write_all(b"\n")
    }

    /// Runs a worker to its end; a failure carries what it said.
    async fn run(&self, mut worker: tokio::process::Command, name: &str) -> anyhow::Result<()> {
        worker.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = worker.spawn().with_context(|| format!("cannot run {name}"))?;
        let id = child.id().with_context(|| format!("{name} ended at once"))?;
        if let Some(told) = child.stdin.take() {
            self.begin(id, File::from(told.into_owned_fd()?)).with_context(|| format!("cannot begin {name}"))?;
        }
        let output = child.wait_with_output().await.with_context(|| format!("cannot wait for {name}"))?;
        self.guard.ended(id)?;
        if !output.status.success() {
            bail!("{name} failed ({})\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else { return };
        let pid = postmaster.id();
        process::thaw_tree(pid);
        process::signal(pid, Mode::Immediate.signal());
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(postmaster.try_wait(), Ok(None)) {
            if Instant::now() > until {
                process::kill_tree(&mut postmaster);
                self.tidy_after_kill();
                break;
            }
            std::thread::sleep(LOOK);
        }
        // The guard, dropped after this, removes the folder.
    }
}

impl Mode {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::SIGTERM,
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }
}

fn free_port() -> io::Result<u16> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        let random = Uuid::new_v4().as_u128() % u128::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(random).unwrap_or_default();
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}
