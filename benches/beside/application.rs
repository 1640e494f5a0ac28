//! What the application's own writers notice: of the outbox row, of waking somebody with it, and of a relay that runs.
//!
//! The relay and the new database run elsewhere in earnest. Here they are kept to the second core, the legacy database and the
//! writers to the first, so that what is left is what the relay does to the legacy database.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::{Connection, Executor, PgConnection};

use crate::case::Scale;
use crate::contender::relay::{Installed, Setup, end};
use crate::flow::{NOTHING_ELSE, write_evenly};
use crate::ground::{Effect, Ground, run, value};
use crate::meter;
use crate::report::{Report, Target, of, rounds, spread, table};

/// Seconds of each measurement.
const FULL: u64 = 20;
const CLIENTS: u32 = 8;
const ACCOUNTS: i64 = 100_000;
/// What a relay's part is measured beside.
const WITHOUT: usize = 3;
/// Events a second, from others, while the relay's part is measured.
const EVENTS: u32 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Two writes of its own
    Alone,
    /// and an event
    Outbox,
    /// and an event that wakes whoever listens
    Notify,
    /// Two writes of its own, while others write events
    Beside,
    /// and a relay carries them over
    Relay,
    /// and one that lingers for so long
    Lingering(&'static str),
}

impl Way {
    fn has_relay(self) -> bool {
        matches!(self, Way::Relay | Way::Lingering(_))
    }
}

const LINES: [(&str, Way); 7] = [
    ("two writes a transaction", Way::Alone),
    ("… and an event, no relay", Way::Outbox),
    ("… and an event with a `NOTIFY`, no relay", Way::Notify),
    ("two writes, while others write 1,000 events/s, no relay", Way::Beside),
    ("… and a relay carries them over", Way::Relay),
    ("… or one with `linger = \"50ms\"`", Way::Lingering("50ms")),
    ("… or one with `linger = \"150ms\"`", Way::Lingering("150ms")),
];

pub(crate) async fn measure(ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    let seconds = scale.seconds.unwrap_or(FULL);
    let own = std::process::id();
    let last = std::thread::available_parallelism()?.get() - 1;
    let kept_apart = [ground.legacy.pid(), Some(own)].into_iter().flatten().all(|pid| keep_to("0", pid))
        && ground.new.pid().is_some_and(|pid| keep_to("1", pid));
    let mut rates: [Vec<f64>; LINES.len()] = Default::default();
    let mut spent: [Vec<f64>; LINES.len()] = Default::default();
    for _ in 0..scale.rounds {
        for (((label, way), rates), spent) in LINES.iter().zip(&mut rates).zip(&mut spent) {
            let (rate, cpu) = once(ground, *way, seconds, kept_apart, relay).await?;
            eprintln!("{label}: {rate:.0}/s");
            rates.push(rate);
            spent.extend(cpu);
        }
    }
    for pid in [ground.legacy.pid(), ground.new.pid(), Some(own)].into_iter().flatten() {
        keep_to(&format!("0-{last}"), pid);
    }
    let mut table = table(["", "transactions/s", "to the first line's", "to the one without", "which is to be"]);
    for (at, ((label, way), runs)) in LINES.iter().zip(&rates).enumerate() {
        let to = |other: &[f64]| spread(runs.iter().zip(other).map(|(one, other)| one / other).collect());
        let without = if way.has_relay() { Some(WITHOUT) } else { at.checked_sub(1) };
        let before = without.map(|before| to(&rates[before]));
        table.add_row([
            (*label).to_owned(),
            spread(runs.clone()).told(0),
            to(&rates[0]).told(2),
            before.map(|ratio| ratio.told(2)).unwrap_or_default(),
            // The relay's part: what is left with one of what was there without.
            before
                .filter(|_| way.has_relay())
                .map(|ratio| Target::AtLeast(0.95).told(ratio.middle))
                .unwrap_or_default(),
        ]);
    }
    let done = format!(
        "{CLIENTS} clients, {} each, {}; {}. The relay itself took {} % of a core, those that linger {} and {}.",
        of(seconds, FULL, "seconds"),
        rounds(scale.rounds),
        match kept_apart {
            true => "legacy database and writers on one core, relay and new database on the other",
            false => "all on the same cores",
        },
        spread(spent[WITHOUT + 1].clone()).told(0),
        spread(spent[WITHOUT + 2].clone()).told(0),
        spread(spent[WITHOUT + 3].clone()).told(0),
    );
    Ok(Report { done, table })
}

/// Keeps a process, its children and all that it starts from now on to these cores. Whether that could be done.
fn keep_to(cores: &str, pid: u32) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let all = children.split_whitespace().map(str::to_owned).chain([pid.to_string()]);
    let keep = |pid: String| Command::new("taskset").args(["-apc", cores, &pid]).output();
    all.map(keep).all(|done| done.is_ok_and(|done| done.status.success()))
}

/// Transactions a second; and the share of a core that the relay took, if one ran.
async fn once(ground: &Ground, way: Way, seconds: u64, keep_apart: bool, relay: &str) -> Result<(f64, Option<f64>)> {
    let pair = ground.pair().await?;
    let linger = match way {
        Way::Lingering(time) => format!("linger = \"{time}\"\n"),
        _ => String::new(),
    };
    let setup = Setup { relay: format!("{linger}{relay}"), ..Setup::default() };
    let installed = Installed::new(ground, &pair, Effect::Upsert, &setup).await?;
    run(
        &pair.legacy,
        &format!(
            "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL DEFAULT 0);
             CREATE TABLE entry (id bigserial PRIMARY KEY, account bigint NOT NULL, at timestamptz NOT NULL DEFAULT now());
             INSERT INTO account SELECT i FROM generate_series(1, {ACCOUNTS}) i; ANALYZE account"
        ),
    )
    .await?;
    if way == Way::Notify {
        run(
            &pair.legacy,
            "CREATE FUNCTION wake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY outbox; RETURN NULL; END $$;
             CREATE TRIGGER wake AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION wake()",
        )
        .await?;
    }
    let process = if way.has_relay() { Some(installed.start(&[])?) } else { None };
    if let Some(process) = &process {
        ensure!(!keep_apart || keep_to("1", process.id()), "the relay cannot be kept to the other core");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ground.settled().await?;
    let others = match way {
        Way::Beside | Way::Relay | Way::Lingering(_) => {
            let url = pair.legacy.clone();
            Some(tokio::spawn(async move {
                let began = Instant::now();
                write_evenly(&url, EVENTS, seconds, NOTHING_ELSE).await.map(|()| began.elapsed())
            }))
        }
        _ => None,
    };
    let started = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| tokio::spawn(client_of(pair.legacy.clone(), client, way, started + Duration::from_secs(seconds))))
        .collect();
    let mut done = 0;
    for client in clients {
        done += client.await??;
    }
    let took = started.elapsed().as_secs_f64();
    if let Some(others) = others {
        let wrote_for = others.await??.as_secs_f64();
        // Who is late has written fewer a second; of a second or two it is their start.
        ensure!(seconds < 5 || wrote_for < 1.1 * seconds as f64, "void: others took {wrote_for:.1} s to write");
    }
    let mut share = None;
    if let Some(mut process) = process {
        share = Some(100.0 * meter::process(process.id())? / took);
        ensure!(process.try_wait()?.is_none(), "void: the relay has ended");
        let started = Instant::now();
        while value::<i64>(&pair.legacy, "SELECT count(*) FROM outbox WHERE status <> 'processed'").await? > 0 {
            ensure!(started.elapsed() < Duration::from_secs(30), "void: the relay does not carry the events over");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It kept up: what it left was of the last moment.
        ensure!(seconds < 5 || started.elapsed() < Duration::from_secs(2), "void: the relay was far behind");
        end(process)?;
    }
    ground.drop(pair).await?;
    Ok((f64::from(done) / took, share))
}

/// One transaction after the other, as an application sends them: a round trip a statement. How many.
async fn client_of(url: String, client: u32, way: Way, until: Instant) -> Result<u32> {
    let mut connection = PgConnection::connect(&url).await?;
    // Ready, as an application sends it.
    let event = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('User', $1, 'UserChanged', $2::jsonb)";
    let mut done = 0;
    while Instant::now() < until {
        let n = i64::from(client) + i64::from(done) * i64::from(CLIENTS);
        let account = 1 + n * 7919 % ACCOUNTS;
        connection.execute("BEGIN").await?;
        let changed = sqlx::query("UPDATE account SET balance = balance + 1 WHERE id = $1").bind(account);
        ensure!(changed.execute(&mut connection).await?.rows_affected() == 1, "no account {account}");
        sqlx::query("INSERT INTO entry (account) VALUES ($1)").bind(account).execute(&mut connection).await?;
        if matches!(way, Way::Outbox | Way::Notify) {
            let payload = format!(
                "{{\"id\": {account}, \"note\": \"{:x<130}\", \"email\": \"User{account}@Example.org\", \"address\": {{\"city\": \"City{}\", \
                 \"street\": \"{account} Long Acre\"}}, \"version\": {n}, \"last_name\": \"Byron{account}\", \"first_name\": \"Ada{}\"}}",
                "",
                account % 500,
                account % 100
            );
            sqlx::query(event).bind(account.to_string()).bind(payload).execute(&mut connection).await?;
        }
        connection.execute("COMMIT").await?;
        done += 1;
    }
    connection.close().await?;
    Ok(done)
}
