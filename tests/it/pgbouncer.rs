//! PgBouncer in transaction mode before both databases, with the configuration that comes with it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use outbox_relay::config::DatabaseUrl;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually};

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
async fn bouncer(stage: &Stage) -> Option<Bouncer> {
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
         pool_mode = transaction\n",
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_works_through_pgbouncer_in_transaction_mode() {
    let mut stage = Stage::with(|config| config.relay.batch = 100).await;
    let Some(bouncer) = bouncer(&stage).await else { return };
    let through = |url: &str| {
        DatabaseUrl::parse(&url.replace(&format!(":{}/", port_of(url)), &format!(":{}/", bouncer.port))).unwrap()
    };
    stage.config.legacy.url = through(&stage.pair.legacy.url);
    stage.config.new.url = through(&stage.pair.new.url);
    stage.config.legacy.prepared_statements = false;
    stage.config.new.prepared_statements = false;
    let running = stage.start().await;
    for _ in 0..5 {
        stage.things(600, 50).await;
        stage.user(1, "UserUpdated", "Ada", 1).await;
    }
    stage.drained().await;
    running.stop().await;
    // Nothing with a name is left to the next client of the same servers.
    for url in [&stage.config.legacy.url, &stage.config.new.url] {
        let mut next =
            PgConnection::connect_with(&url.expose().parse::<PgConnectOptions>().unwrap().extra_float_digits(None))
                .await
                .unwrap();
        let rows = next.fetch_all(sqlx::raw_sql("SELECT name FROM pg_prepared_statements")).await.unwrap();
        assert_eq!(rows.len(), 0);
    }
    assert_eq!(stage.count("processed").await, 3005);
    stage.oracle_agrees().await;
}
