//! The operator's page in a real browser: Chromium, driven by tests/page/drive.mjs, before a real relay on two servers of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use outbox_relay::config::{Role, Token};
use outbox_relay::operator::Operator;
use outbox_relay::relay;
use outbox_relay::run::serve_admin_api;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually, own_servers};

/// As a rule half a minute; a machine that is busy with other tests takes its time.
const AT_MOST: Duration = Duration::from_secs(300);

/// Where Chromium and the packages of tests/page are; `None`, and a word about it, where they are not.
fn browser() -> Option<(PathBuf, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
    let has = |program: &str| std::process::Command::new(program).arg("--version").output().is_ok();
    let named = std::env::var_os("OUTBOX_RELAY_CHROMIUM").map(PathBuf::from);
    let usual = ["chromium", "chromium-browser", "google-chrome"].map(PathBuf::from);
    let on_path = |name: &PathBuf| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
    };
    let chromium = named.or_else(|| usual.iter().find_map(on_path));
    let missing = match &chromium {
        None => "there is no Chromium",
        Some(_) if !has("node") => "there is no node",
        Some(_) if !folder.join("node_modules/playwright-core").exists() => "tests/page/node_modules is not installed",
        Some(_) => return chromium.map(|chromium| (folder, chromium)),
    };
    eprintln!(
        "SKIPPED: the page in a real browser: {missing}; scripts/setup --tests installs it where that is possible"
    );
    None
}

/// What the events of the story need.
const RULE: &str = "ALTER TABLE users ADD CONSTRAINT named CHECK (name <> 'nobody') NOT VALID";
const GUESS: &str = "CREATE FUNCTION guess() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.name = 'somebody' THEN RAISE EXCEPTION 'this name is for the relay to guess'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER guess BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION guess()";
const MEND: &str = "ALTER TABLE users DROP CONSTRAINT IF EXISTS named; DROP TRIGGER IF EXISTS guess ON users; DROP FUNCTION IF EXISTS guess";

/// An hour in which another process has worked: what a new one finds.
const HISTORY: &str = "INSERT INTO outbox_relay.history (minute, instance, name, seconds, processed, unapplied, lags, batches)
    SELECT m, '11111111-1111-4111-8111-111111111111', 'relay-0:1', 60,
           9000 + (2500 * sin(m / 9.0) + 900 * sin(m / 2.3))::int, 40 + (30 * sin(m / 4.0))::int,
           array_fill(0::bigint, ARRAY[5 + (m % 2)::int]) || ARRAY[5000::bigint, 3000, 700, 200, 60 + (m % 7) * 9, (m % 5) * 4],
           array_fill(80::bigint, ARRAY[16])
    FROM (SELECT floor(extract(epoch FROM now()) / 60)::bigint - i AS m FROM generate_series(1, 58) i) minutes";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_found_right_by_a_real_browser() {
    let Some((folder, chromium)) = browser() else { return };
    let mut servers = own_servers().await;
    let stage = Stage::on(servers.pair().await, |config| {
        config.retry.attempts = 1;
        config.relay.deadline = Duration::from_secs(5);
        config.admin.tokens = vec![
            Token { name: "ops".into(), role: Role::Admin, secret: "all-of-it".into() },
            Token { name: "board".into(), role: Role::Read, secret: "only-look".into() },
        ];
    })
    .await;
    stage.pair.legacy.run(HISTORY).await;
    let shared = stage.shared().await;
    let stop = CancellationToken::new();
    let operator = Operator::new(&stage.config).unwrap();
    operator.attach(shared.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let beside = serve_admin_api(&stage.config, listener, &operator, &shared.metrics, &stop);
    let relay = tokio::spawn(relay::run(shared.clone(), stop.clone()));
    let writer = tokio::spawn(keep_writing(stage.pair.legacy.pool.clone(), stop.clone()));

    let mut node = Command::new("node");
    node.arg("drive.mjs").current_dir(&folder).env("PAGE_URL", &url).env("PAGE_CHROMIUM", chromium);
    if let Some(folder) = std::env::var_os("OUTBOX_RELAY_SCREENSHOTS") {
        node.env("PAGE_SCREENSHOTS", Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
    }
    node.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut node = node.spawn().expect("node");
    let mut orders = BufReader::new(node.stdout.take().unwrap()).lines();
    let (mut answers, mut errors) = (node.stdin.take().unwrap(), node.stderr.take().unwrap());
    let told = tokio::spawn(async move {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text).await;
        text
    });
    let drive = async {
        let mut said = Vec::new();
        let mut users = 5000;
        while let Some(line) = orders.next_line().await.unwrap() {
            if let Some(order) = line.strip_prefix("DO ") {
                let answer = match order {
                    "new away" => {
                        servers.new.kill().await;
                        String::new()
                    }
                    "new back" => {
                        servers.new.restart().await.unwrap();
                        String::new()
                    }
                    order => obey(&stage, order, &mut users).await,
                };
                answers.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
            said.push(line);
        }
        said
    };
    let said = tokio::time::timeout(AT_MOST, drive).await.expect("the browser is done in time");
    let ended = node.wait().await.unwrap();
    let told = told.await.unwrap();
    assert!(ended.success() && said.last().is_some_and(|line| line == "DONE"), "{}\n{told}", said.join("\n"));
    eprintln!("{}", said.join("\n"));

    stop.cancel();
    writer.await.unwrap();
    relay.await.unwrap().unwrap();
    for task in beside {
        tokio::time::timeout(DEADLINE, task).await.expect("no open page keeps the server").unwrap();
    }
}

/// Does what the story wants; an answer for it.
async fn obey(stage: &Stage, order: &str, users: &mut i64) -> String {
    match order.split_once(' ') {
        None if order == "fail" => {
            stage.pair.new.run(GUESS).await;
            let event = stage.user(4711, "UserCreated", "somebody", 1).await;
            // In one batch with the others it would pass: of a run of upserts, the last row of a key is written.
            eventually(DEADLINE, "it fails", || async { stage.status(event).await == "failed" }).await;
            for version in 2..5 {
                stage.user(4711, "UserUpdated", "known again", version).await;
            }
            eventually(DEADLINE, "it holds back", || async { stage.count("held").await == 3 }).await;
            event.to_string()
        }
        Some(("break", n)) => {
            let n: i64 = n.parse().unwrap();
            stage.pair.new.run(MEND).await;
            stage.pair.new.run(RULE).await;
            let before = stage.count("failed").await;
            for _ in 0..n {
                *users += 1;
                stage.user(*users, "UserCreated", "nobody", 1).await;
            }
            eventually(DEADLINE, "they fail", || async { stage.count("failed").await == before + n }).await;
            String::new()
        }
        None if order == "mend" => {
            stage.pair.new.run(MEND).await;
            String::new()
        }
        _ => panic!("what is {order:?}?"),
    }
}

/// A few events, again and again, so that something flows.
async fn keep_writing(legacy: sqlx::PgPool, stop: CancellationToken) {
    let mut version = 0i32;
    while !stop.is_cancelled() {
        version += 1;
        let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
                   SELECT 'Thing', 'thing ' || i, 'Happened', jsonb_build_object('version', $1::int) FROM generate_series(1, 8) i";
        let _ = sqlx::query(sql).bind(version).execute(&legacy).await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}
