//! The throwaway servers: what the other tests and the demo rely on.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use outbox_relay::demo::server::{Mode, Options, Server};
use tokio::time::timeout;

use crate::support::{DEADLINE, Database, database, eventually, pair};

async fn server_with_a_table() -> (Server, Database) {
    let server = Server::start(Options::for_tests("test-server")).await.unwrap();
    let db = database(&server).await;
    db.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    (server, db)
}

/// All processes that run from, or guard, this folder: by their command lines, as `ps` would show them.
pub(crate) fn processes_of(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder)).count()
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_what_was_committed() {
    let (mut server, db) = server_with_a_table().await;
    let port = server.port();
    server.kill().await;
    assert_eq!(server.pid(), None);
    server.restart().await.unwrap();
    assert_eq!(server.port(), port);
    assert_eq!(db.value::<i64>("SELECT count(*) FROM t").await, 1);
    server.stop(Mode::Immediate).await.unwrap();
    server.restart().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(db.value::<i64>("SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn a_frozen_server_answers_nobody_until_it_is_thawed() {
    let (mut server, db) = server_with_a_table().await;
    // A session that exists already is as frozen as the postmaster, which would take new ones.
    let mut session = db.pool.acquire().await.unwrap();
    server.freeze();
    let mut query = Box::pin(sqlx::query("SELECT 1").execute(&mut *session));
    assert!(timeout(Duration::from_millis(300), query.as_mut()).await.is_err());
    server.thaw();
    timeout(DEADLINE, query).await.unwrap().unwrap();
    drop(session);
    // A kill ends the frozen, too.
    server.freeze();
    server.kill().await;
    server.restart().await.unwrap();
    assert_eq!(db.value::<i64>("SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn going_back_to_a_snapshot_loses_later_commits_and_keeps_port_and_identity() {
    let (mut server, db) = server_with_a_table().await;
    let identity = "SELECT system_identifier FROM pg_control_system()";
    let before: i64 = db.value(identity).await;
    let snapshot = server.snapshot().await.unwrap();
    for _ in 0..2 {
        db.run("INSERT INTO t VALUES (2)").await;
        server.go_back_to(&snapshot).await.unwrap();
        assert_eq!(db.value::<Vec<i32>>("SELECT array_agg(n) FROM t").await, [1]);
        assert_eq!(db.value::<i64>(identity).await, before);
        // Like a promoted replica, on a timeline of its own; so a later snapshot can be taken, and gone back to, too.
        let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
        db.run("CHECKPOINT").await;
        assert_eq!(db.value::<i32>(timeline).await, 2);
    }
    let later = server.snapshot().await.unwrap();
    db.run("INSERT INTO t VALUES (3)").await;
    server.go_back_to(&later).await.unwrap();
    assert_eq!(db.value::<Vec<i32>>("SELECT array_agg(n) FROM t").await, [1]);
}

#[tokio::test]
async fn a_dropped_server_leaves_no_process_and_no_file() {
    let (mut server, db) = server_with_a_table().await;
    let dir = server.dir().to_owned();
    assert!(dir.exists() && processes_of(&dir) > 0);
    server.freeze();
    drop(db);
    drop(server);
    assert!(!dir.exists());
    assert_eq!(processes_of(&dir), 0);

    server = Server::start(Options::new("test-server")).await.unwrap();
    let dir = server.dir().to_owned();
    server.kill().await;
    drop(server);
    assert!(!dir.exists());
    eventually(DEADLINE, "the guard has ended", || async { processes_of(&dir) == 0 }).await;
}

#[tokio::test]
async fn a_start_that_is_cancelled_leaves_no_process_and_no_file() {
    let parent = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let folders = || std::fs::read_dir(parent.path()).unwrap().count();
    for milliseconds in [0, 100, 400, 800] {
        let options = Options { parent: Some(parent.path().to_owned()), ..Options::for_tests("test-server") };
        let _ = timeout(Duration::from_millis(milliseconds), Server::start(options)).await;
        assert_eq!(folders(), 0, "after {milliseconds} ms");
        eventually(DEADLINE, "its processes are gone", || async { processes_of(parent.path()) == 0 }).await;
    }
}

#[tokio::test]
async fn a_server_with_a_password_refuses_those_without() {
    let mut server = Server::start(Options::new("test-server")).await.unwrap();
    server.create_database("a").await.unwrap();
    server.snapshot().await.unwrap();
    let without = format!("postgres://postgres:wrong@127.0.0.1:{}/a", server.port());
    let refused = sqlx::PgPool::connect(&without).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "28P01");
}

#[tokio::test]
async fn the_database_pairs_of_two_tests_are_apart() {
    let (one, other) = tokio::join!(pair(), pair());
    one.legacy.run("CREATE TABLE t (n int)").await;
    one.new.run("CREATE TABLE t (n int)").await;
    other.legacy.run("CREATE TABLE t (n int)").await;
    let identity = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(one.legacy.value::<i64>(identity).await, one.new.value::<i64>(identity).await);
}

/// Not a test: what the next test kills.
#[tokio::test]
#[ignore = "run by a_killed_program_leaves_no_process_and_no_file"]
async fn program_that_waits_to_be_killed() {
    let server = Server::start(Options::for_tests("test-server")).await.unwrap();
    println!("folder {}", server.dir().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_program_leaves_no_process_and_no_file() {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "server::program_that_waits_to_be_killed"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    let dir = lines.find_map(|line| line.split_once("folder ").map(|(_, dir)| PathBuf::from(dir))).unwrap();
    assert!(dir.exists());
    program.kill().unwrap();
    program.wait().unwrap();
    eventually(DEADLINE, "folder and processes are gone", || async { !dir.exists() && processes_of(&dir) == 0 }).await;
}
