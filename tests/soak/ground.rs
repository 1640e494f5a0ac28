//! What stands before anything goes wrong: two servers, the tables of both applications, what `init` makes, and a folder that is
//! gone with everything in it when this process is, however it went.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use outbox_relay::demo::server::{Options, Server};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::plan::Plan;
use crate::{relays, shop};

/// How many of each kind there are; the first few are hot.
pub const AGGREGATES: u64 = 80;
/// Few, so that all of them can be taken.
const CONNECTIONS: u32 = 120;

/// The folder of a run.
pub struct Folder {
    pub path: PathBuf,
    guard: Child,
}

/// `$1`: the folder. Waits until the pipe closes; then no relay of this folder may live on, frozen or not, its disks are unmounted (when
/// the servers' own guards are done with them), and it is removed.
const GUARD: &str = r#"
trap '' HUP INT QUIT TERM
read -r _
for process in /proc/[0-9]*; do
    if tr '\0' ' ' < "$process/cmdline" | grep -q -- "--config $1/"; then kill -KILL "${process#/proc/}"; fi
done
tries=0
for disk in "$1"/disk-*; do
    until umount "$disk" || ! grep -q " $disk " /proc/mounts || [ $tries -ge 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
done
rm -rf "$1"
"#;

impl Folder {
    pub fn new() -> io::Result<Folder> {
        let path = std::env::temp_dir().join(format!("outbox-relay-soak-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o755).create(&path)?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(GUARD).arg("outbox-relay-soak-guard").arg(&path).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Folder { guard: command.spawn()?, path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closes the pipe, and waits until all is gone.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A disk of its own for a server, that can be made to be full. In memory, and so small.
pub struct Disk(PathBuf);

impl Disk {
    /// `None`: this machine, or this user, does not mount.
    fn mount(at: PathBuf) -> io::Result<Option<Disk>> {
        std::fs::create_dir(&at)?;
        let mounted = run("mount", &["-t", "tmpfs", "-o", "size=2g,mode=755", "tmpfs", &at.to_string_lossy()]).is_ok();
        Ok(mounted.then_some(Disk(at)))
    }

    /// Not a page more than it holds now.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut why = String::new();
        // It may grow between the look and the change.
        for more in [0, 64, 256, 1024] {
            let used = run("df", &["--output=used", "-k", &self.0.to_string_lossy()])?;
            let used: u64 = used.lines().last().unwrap_or_default().trim().parse()?;
            match self.resize(&format!("{}k", used + more)) {
                Ok(()) => return Ok(()),
                Err(error) => why = error.to_string(),
            }
        }
        bail!("the disk cannot be made smaller: {why}")
    }

    pub fn make_room(&self) -> anyhow::Result<()> {
        self.resize("2g")
    }

    fn resize(&self, size: &str) -> anyhow::Result<()> {
        run("mount", &["-o", &format!("remount,size={size}"), &self.0.to_string_lossy()]).map(|_| ())
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One of the two.
pub struct Side {
    pub name: &'static str,
    pub server: Server,
    pub disk: Option<Disk>,
}

impl Side {
    pub async fn start(name: &'static str, folder: &Path) -> anyhow::Result<Side> {
        let disk = Disk::mount(folder.join(format!("disk-{name}")))?;
        let mut options = Options::for_tests(&format!("soak-{name}"))
            .with("max_connections", &CONNECTIONS.to_string())
            .with("superuser_reserved_connections", "20");
        options.parent = disk.as_ref().map(|disk| disk.0.clone());
        let server = Server::start(options).await?;
        server.create_database("soak").await?;
        Ok(Side { name, server, disk })
    }

    /// As superuser, whom reserved connections are kept for.
    pub fn url(&self) -> String {
        self.server.url("soak")
    }
}

/// The monolith's tables, and the shop's, which is captured. What the monolith has written stands in `written`, by the same transaction: when the database goes back in time, so
/// does its memory of what it wrote. The shop may write its own tables, and no outbox.
const LEGACY: &str = "
    CREATE ROLE relay LOGIN; CREATE ROLE app LOGIN; CREATE ROLE hog LOGIN;
    CREATE TABLE things (kind text, id int, version int NOT NULL DEFAULT 0, name text NOT NULL DEFAULT '', present boolean NOT NULL DEFAULT false,
                         PRIMARY KEY (kind, id));
    CREATE TABLE written (event_id uuid PRIMARY KEY, id bigint NOT NULL, kind text NOT NULL, aggregate text NOT NULL,
                          event_type text NOT NULL, version int NOT NULL, poison boolean NOT NULL);
    CREATE ROLE shop;
    CREATE TABLE clients (id bigint PRIMARY KEY, first text NOT NULL, last text NOT NULL, version int NOT NULL);
    CREATE TABLE clients_gone (id bigint PRIMARY KEY, version int NOT NULL);
    GRANT SELECT, INSERT, UPDATE, DELETE ON clients, clients_gone TO shop;";

/// The new service's tables. `applied` is the oracle: it has no unique constraint. Poison is refused until somebody has cured it. A customer
/// that comes is told when, and watched; whoever sees one go back is as much a part of the database that may fail over.
const NEW: &str = concat!(
    include_str!("../watch.sql"),
    "
    CREATE ROLE relay LOGIN; CREATE ROLE hog LOGIN;
    CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, version int NOT NULL);
    CREATE TABLE applied (n bigserial, event_id uuid, event bigint, kind text, aggregate text, event_type text, version int);
    CREATE TABLE cures (event_id uuid PRIMARY KEY);
    CREATE FUNCTION accept(event uuid, payload jsonb) RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public AS $$
    BEGIN
        IF payload ? 'poison' AND NOT EXISTS (SELECT FROM cures WHERE event_id = event) THEN
            RAISE EXCEPTION 'poison';
        END IF;
        RETURN true;
    END $$;
    CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL, came_at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW EXECUTE FUNCTION watch();"
);

/// Makes whole what schema changes may have left behind, whichever of them a snapshot was taken in the middle of.
pub const MEND: &str = "
    SET lock_timeout = '2s';
    DO $$ BEGIN
        IF to_regclass('applied_elsewhere') IS NOT NULL THEN ALTER TABLE applied_elsewhere RENAME TO applied; END IF;
        IF to_regclass('users_elsewhere') IS NOT NULL THEN ALTER TABLE users_elsewhere RENAME TO users; END IF;
        IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'nickname') THEN
            ALTER TABLE users RENAME nickname TO name;
        END IF;
        IF to_regproc('accept_no_more') IS NOT NULL THEN ALTER FUNCTION accept_no_more(uuid, jsonb) RENAME TO accept; END IF;
    END $$;
    GRANT SELECT, INSERT, UPDATE, DELETE ON users TO relay;
    GRANT INSERT ON applied TO relay;
    GRANT USAGE ON SEQUENCE applied_n_seq TO relay;";

/// Makes the tables, and runs `init` and `check` as an operator would; the relay's role gets the grants that `init --print` prints.
pub async fn prepare(folder: &Path, plan: &Plan, legacy: &Side, new: &Side) -> anyhow::Result<()> {
    let mut source = PgConnection::connect(&legacy.url()).await?;
    let mut target = PgConnection::connect(&new.url()).await?;
    source.execute(LEGACY).await?;
    let rows = format!(
        "INSERT INTO things (kind, id) SELECT k, i FROM unnest('{{Thing,User,Order}}'::text[]) k, generate_series(1, {AGGREGATES}) i"
    );
    source.execute(AssertSqlSafe(rows)).await?;
    let clients = format!("INSERT INTO clients SELECT i, 'f' || i, 'l', 1 FROM generate_series(1, {}) i", shop::ROWS);
    source.execute(AssertSqlSafe(clients)).await?;
    target.execute(NEW).await?;
    target.execute(MEND).await?;
    let config = relays::configure(&folder.join("setup"), plan, &legacy.url(), &new.url())?;
    let say = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = relays::command(&config, arguments).output().context("the program")?;
        let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{arguments:?}: {}\n{said}{told}", output.status);
        Ok(said.into_owned())
    };
    say(&["init"])?;
    let script = say(&["init", "--print", "--relay-role", "relay", "--app-role", "app"])?;
    let (source_script, target_script) = script.split_once("On the new database").context("two scripts")?;
    for (connection, script) in [(&mut source, source_script), (&mut target, target_script)] {
        for grant in script.lines().filter(|line| line.starts_with("GRANT")) {
            connection.execute(AssertSqlSafe(grant.to_owned())).await.context(grant.to_owned())?;
        }
    }
    say(&["capture", "install"])?;
    say(&["check"])?;
    Ok(())
}

/// For whoever wants to know why: the relays' and the tools' files and logs, and both databases as SQL, are copied to a place that stays.
pub fn keep(folder: &Path, sides: &[Side], place: &Path) {
    let copy = || -> anyhow::Result<()> {
        std::fs::create_dir_all(place)?;
        for side in sides {
            let dump = side.server.binaries().path("pg_dump");
            let sql = run(&dump.to_string_lossy(), &["--inserts", &side.url()])?;
            std::fs::write(place.join(format!("{}.sql", side.name)), sql)?;
        }
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let of = |name: &std::ffi::OsStr| name == "tools" || name.to_string_lossy().starts_with("relay-");
            if path.file_name().is_some_and(of) {
                run("cp", &["-r", &path.to_string_lossy(), &place.to_string_lossy()])?;
            }
        }
        Ok(())
    };
    match copy() {
        Ok(()) => println!("kept in {}", place.display()),
        Err(error) => println!("could not be kept: {error:#}"),
    }
}
