//! PgBouncer in transaction mode before both databases, with the configuration that comes with it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use outbox_relay::config::{DatabaseUrl, TableName};
use outbox_relay::event::Lane;
use outbox_relay::source::{Names, Source};
use outbox_relay::{capture, connect};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::copying::{self, agree, rows};
use crate::support::program::{folder_of, said};
use crate::support::stage::{Stage, users};
use crate::support::{DEADLINE, eventually, pair};

struct Bouncer {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn port_of(url: &str) -> &str {
    url.rsplit(':').next().unwrap().split('/').next().unwrap()
}

/// One for both servers; `None`, and a word, where it is not installed.
async fn bouncer(stage: &Stage, more: &str) -> Option<Bouncer> {
    let program =
        ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| std::path::Path::new(path).exists());
    let Some(program) = program else {
        eprintln!("skipped: pgbouncer is not installed");
        return None;
    };
    let folder = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = folder.path().join("pgbouncer.ini");
    let database = |url: &str, name: &str| format!("{name} = host=127.0.0.1 port={} dbname={name}\n", port_of(url));
    let pair = &stage.pair;
    let text = format!(
        "[databases]\n{}{}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = transaction\n{more}",
        database(&pair.legacy.url, &pair.legacy.name).replace('\n', " user=postgres\n"),
        database(&pair.new.url, &pair.new.name).replace('\n', " user=postgres\n"),
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(program);
    // It refuses to run as root.
    if nix::unistd::geteuid().is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", program]);
    }
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let process =
        command.arg(&config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let bouncer = Bouncer { process, port, _folder: folder };
    eventually(DEADLINE, "pgbouncer listens", || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    Some(bouncer)
}

fn go_through(stage: &mut Stage, bouncer: &Bouncer) {
    let through = |url: &str| {
        DatabaseUrl::parse(&url.replace(&format!(":{}/", port_of(url)), &format!(":{}/", bouncer.port))).unwrap()
    };
    stage.config.legacy.url = through(&stage.pair.legacy.url);
    stage.config.new.url = through(&stage.pair.new.url);
    stage.config.legacy.prepared_statements = false;
    stage.config.new.prepared_statements = false;
}

/// To the next client of the same servers: nothing with a name, and no lock.
async fn nothing_is_left_behind(stage: &Stage) {
    for url in [&stage.config.legacy.url, &stage.config.new.url] {
        let mut next =
            PgConnection::connect_with(&url.expose().parse::<PgConnectOptions>().unwrap().extra_float_digits(None))
                .await
                .unwrap();
        for what in [
            "pg_prepared_statements",
            "pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        ] {
            let sql = format!("SELECT FROM {what}");
            let rows = next.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
            assert_eq!(rows.len(), 0, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_works_through_pgbouncer_in_transaction_mode() {
    let mut stage = Stage::with(|config| config.relay.batch = 100).await;
    let Some(bouncer) = bouncer(&stage, "").await else { return };
    go_through(&mut stage, &bouncer);
    let running = stage.start().await;
    for _ in 0..5 {
        stage.things(600, 50).await;
        stage.user(1, "UserUpdated", "Ada", 1).await;
    }
    stage.drained().await;
    running.stop().await;
    nothing_is_left_behind(&stage).await;
    assert_eq!(stage.count("processed").await, 3005);
    stage.oracle_agrees().await;
}

/// As with a pooler that knows prepared statements of the protocol, but not those of SQL.
#[tokio::test]
async fn a_look_whose_statement_is_not_kept_for_it_makes_it_anew_each_time() {
    let mut stage = Stage::new().await;
    let Some(bouncer) = bouncer(&stage, "").await else { return };
    go_through(&mut stage, &bouncer);
    let pool = connect::source(&stage.config, 2).unwrap();
    let names = Names::new(&stage.config.legacy, stage.config.relay.lanes);
    let source = Source::new(pool.clone(), names, DEADLINE, false, None, true);
    let mut own = source.own();
    let lanes = [Lane(0)];
    for _ in 0..3 {
        source.look_again(&mut own, &[], true, &lanes).await.unwrap();
    }
    // Somebody else has that server now, and the next one does not know the name.
    let mut other = pool.begin().await.unwrap();
    sqlx::raw_sql("SELECT").execute(&mut *other).await.unwrap();
    let error = source.look_again(&mut own, &[], true, &lanes).await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    for _ in 0..3 {
        source.look_again(&mut own, &[], true, &lanes).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relay_writes_is_not_captured_and_whoever_comes_next_on_its_connection_is() {
    let mut stage = Stage::with(|config| {
        config.entities[0] = users().made_of(TableName { schema: "public".into(), table: "users".into() }, "id");
        config.relay.batch = 10;
    })
    .await;
    // The table that the relay writes is captured too, as for the way back; and tells on which connection it was written.
    let script = capture::print(&stage.config, &stage.config.entities[0], false).unwrap();
    stage
        .pair
        .new
        .run(&format!(
            "CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text, aggregate_id text, event_type text,
                                  payload jsonb);
             {script};
             CREATE TABLE written (id bigint, pid int, applying text);
             CREATE FUNCTION written() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.written VALUES (NEW.id, pg_backend_pid(), coalesce(current_setting('outbox_relay.applying', true), ''));
                 RETURN NULL; END $$;
             CREATE TRIGGER written AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION written()"
        ))
        .await;
    // One connection to the server for everybody.
    let Some(bouncer) = bouncer(&stage, "default_pool_size = 1\n").await else { return };
    go_through(&mut stage, &bouncer);
    let options: PgConnectOptions = stage.config.new.url.expose().parse().unwrap();
    let mut next = PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap();
    let running = stage.start().await;
    for n in 0..50 {
        stage.user(n, "UserUpdated", "of the relay", 1).await;
        // Some fail, and are undone.
        stage.event("User", "7777", "UserUpdated", r#"{"id": 7777, "name": null, "version": 1}"#).await;
        let of_others = format!("INSERT INTO users VALUES ({}, 'of others', 1)", 1000 + n);
        next.execute(sqlx::raw_sql(AssertSqlSafe(of_others))).await.unwrap();
    }
    eventually(DEADLINE, "all is applied", || async {
        stage.pair.new.value::<i64>("SELECT count(*) FROM users WHERE id < 1000").await == 50
    })
    .await;
    running.stop().await;
    let written = "SELECT string_agg(DISTINCT concat_ws(' ', id < 1000, applying), ', ' ORDER BY concat_ws(' ', id < 1000, applying)) FROM written";
    assert_eq!(stage.pair.new.value::<String>(written).await, "f , t on");
    assert_eq!(
        stage.pair.new.value::<i64>("SELECT count(DISTINCT pid) FROM written").await,
        1,
        "or this shows nothing"
    );
    let captured = "SELECT concat_ws(' ', count(*), min(aggregate_id), max(aggregate_id)) FROM outbox";
    assert_eq!(stage.pair.new.value::<String>(captured).await, "50 1000 1049");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_captured_copied_verified_and_repaired_through_pgbouncer_in_transaction_mode() {
    let mut stage = copying::stage(pair().await, 3_000, |_| {}).await;
    let Some(bouncer) = bouncer(&stage, "").await else { return };
    go_through(&mut stage, &bouncer);
    let folder = folder_of(&stage, "");
    said(&folder, &["check"], 0).await;
    said(&folder, &["capture", "install", "users"], 0).await;
    let running = stage.start().await;
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    legacy.run("UPDATE users SET version = 2, name = 'two' WHERE id % 10 = 0").await;
    said(&folder, &["backfill"], 0).await;
    legacy
        .run("UPDATE users SET version = 3, name = 'three' WHERE id % 7 = 0; DELETE FROM users WHERE id % 100 = 1")
        .await;
    stage.drained().await;
    said(&folder, &["verify"], 0).await;
    agree(&stage).await;

    new.run(
        "DROP TRIGGER watch ON users; UPDATE users SET name = 'wrong' WHERE id = 5; DELETE FROM users WHERE id = 6;
         INSERT INTO users VALUES (99999, 'too much', 1)",
    )
    .await;
    let found = said(&folder, &["verify"], 1).await;
    for line in ["users 5 differs", "users 6 is missing in new", "users 99999 is missing in legacy", "3 differences"] {
        assert!(found.contains(line), "{line}: {found}");
    }
    said(&folder, &["repair", "--apply", "--reason", "a test", "--yes"], 0).await;
    said(&folder, &["verify"], 0).await;
    running.stop().await;
    assert_eq!(rows(new).await, rows(legacy).await);
    nothing_is_left_behind(&stage).await;
}
