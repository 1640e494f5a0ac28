//! The soak: real processes of the built program between two real servers, while everything goes wrong at once, at random, by a seed.
//!
//! `make soak SECONDS=600 SEED=7` runs the release build for ten minutes; `make test` runs a short one, of the build that is tested. The
//! run ends by itself, prints what was injected and what the oracle found, and leaves no process and no file, however it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, reason = "a test that cannot go on panics")]

mod captured;
mod dba;
mod ground;
mod operators;
mod oracle;
mod plan;
mod process;
mod proxy;
mod relays;
mod servers;
mod shop;
mod tally;
mod tools;
mod writers;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::dba::Urls;
use crate::ground::{Folder, Side};
use crate::operators::Desk;
use crate::oracle::{Evidence, Verdict, judge};
use crate::plan::{Dice, Plan, pause};
use crate::proxy::Proxy;
use crate::relays::Relay;
use crate::servers::Lost;
use crate::shop::Deleted;
use crate::tally::Tally;
use crate::tools::Tools;
use crate::writers::Sent;

/// When for so long nothing more is settled after the last fault, what is left is stuck.
const STUCK: Duration = Duration::from_secs(120);
const WRITERS: u16 = 4;
const OPERATORS: u16 = 2;
/// So many copies at once, and so many verifications.
const TOOLS: u16 = 2;

/// Seeds that have found something, each with a shape of its own; `make test` runs each for a short while. 1: a lane that had been quiet
/// could not be healed, for retention had taken what both databases had last known. 2: a relay that was told to end said that it had
/// ended by itself.
const KEPT: [u64; 2] = [1, 2];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Long enough for most faults of each kind; with all that is around it, a minute and a half for those that are kept.
const SHORT: u64 = 35;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_fails_nothing_is_lost_doubled_disordered_or_different() {
    let seconds = number("OUTBOX_RELAY_SOAK_SECONDS").unwrap_or(SHORT);
    let seeds = number("OUTBOX_RELAY_SOAK_SEED").map_or(KEPT.to_vec(), |seed| vec![seed]);
    for plan in seeds.into_iter().map(|seed| Plan::of(seed, seconds)) {
        println!("{plan}");
        let tally = Tally::default();
        let result = soak(&plan, &tally).await;
        println!("\nInjected, and what came of it:\n{tally}");
        match result {
            Ok(verdict) => {
                println!("Found:\n{verdict}");
                assert!(verdict.is_clean(), "{plan}: see what was found above");
            }
            Err(error) => panic!("{plan}: {error:?}"),
        }
    }
}

async fn soak(plan: &Plan, tally: &Tally) -> anyhow::Result<Verdict> {
    // Dropped in this order: the servers first, the folder last.
    let folder = Folder::new()?;
    let mut sides = Vec::new();
    let result = in_folder(plan, tally, &folder, &mut sides).await;
    if !result.as_ref().is_ok_and(Verdict::is_clean)
        && let Some(place) = std::env::var_os("OUTBOX_RELAY_SOAK_KEEP")
    {
        ground::keep(&folder.path, &sides, place.as_ref());
    }
    result
}

async fn in_folder(plan: &Plan, tally: &Tally, folder: &Folder, sides: &mut Vec<Side>) -> anyhow::Result<Verdict> {
    let (legacy, new) = tokio::try_join!(Side::start("legacy", &folder.path), Side::start("new", &folder.path))?;
    ground::prepare(&folder.path, plan, &legacy, &new).await.context("before anything went wrong")?;
    let urls = Urls { legacy: legacy.url(), new: new.url() };

    // Whoever is started has a configuration, a network, and a folder of its own.
    let (legacy_side, new_side) = (&legacy, &new);
    let apart = async |name: String, network: String| -> anyhow::Result<_> {
        let proxy = |side: &Side| {
            Proxy::before(side.server.port(), plan.dice(&format!("network {network} {}", side.name)), tally.clone())
        };
        let (to_legacy, to_new) = tokio::try_join!(proxy(legacy_side), proxy(new_side))?;
        let url = |port| format!("postgres://relay@127.0.0.1:{port}/soak");
        let config = relays::configure(&folder.path.join(name), plan, &url(to_legacy.port), &url(to_new.port))?;
        Ok((config, to_legacy, to_new))
    };
    let mut relays = Vec::new();
    for n in 0..plan.instances {
        let (config, to_legacy, to_new) = apart(format!("relay-{n}"), n.to_string()).await?;
        relays.push(Relay::new(config, to_legacy, to_new));
    }
    let lost = Lost::default();
    let (config, to_legacy, to_new) = apart("tools".to_owned(), "tools".to_owned()).await?;
    let tools = Tools::new(config, to_legacy, to_new, urls.clone(), tally.clone(), lost.clone());
    let desk = Desk {
        relays: relays.iter().map(|relay| relay.admin.clone()).collect(),
        urls: urls.clone(),
        tally: tally.clone(),
        long_memory: plan.failovers,
    };
    let (sent, deleted) = (Sent::default(), Deleted::default());

    let over = CancellationToken::new();
    let mut servers = JoinSet::new();
    for side in [legacy, new] {
        let dice = plan.dice(&format!("server {}", side.name));
        servers.spawn(servers::happen(side, plan.failovers, dice, (tally.clone(), lost.clone()), over.clone()));
    }
    let mut processes = JoinSet::new();
    for (n, relay) in relays.into_iter().enumerate() {
        let dice = plan.dice(&format!("relay {n}"));
        processes.spawn(relays::happen(relay, dice, tally.clone(), over.clone()));
    }
    let mut people = JoinSet::new();
    for n in 0..WRITERS {
        let dice = plan.dice(&format!("writer {n}"));
        people.spawn(writers::write(urls.legacy.clone(), dice, sent.clone(), over.clone()));
    }
    for n in 0..shop::WRITERS {
        let (dice, known) = (plan.dice(&format!("shop {n}")), (deleted.clone(), tally.clone()));
        people.spawn(shop::write(urls.legacy.clone(), n, dice, known, over.clone()));
    }
    for n in 0..TOOLS {
        people.spawn(tools::copy(tools.clone(), plan.dice(&format!("copies {n}")), over.clone()));
        people.spawn(tools::verify(tools.clone(), plan.dice(&format!("verifications {n}")), over.clone()));
    }
    for n in 0..OPERATORS {
        people.spawn(operators::happen(desk.clone(), plan.dice(&format!("operator {n}")), over.clone()));
    }
    people.spawn(dba::happen(urls.clone(), plan.dice("dba"), tally.clone(), over.clone()));

    // Whoever ends early has found something, or cannot go on.
    let mut early = None;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(plan.seconds)) => {}
        Some(ended) = servers.join_next() => early = Some(ended?.map(drop)),
        Some(ended) = processes.join_next() => early = Some(ended?.map(drop)),
        Some(ended) = people.join_next() => early = Some(ended?),
    }
    over.cancel();
    while let Some(ended) = servers.join_next().await {
        sides.push(ended??);
    }
    let mut relays = Vec::new();
    while let Some(ended) = processes.join_next().await {
        relays.push(ended??);
    }
    while let Some(ended) = people.join_next().await {
        ended??;
    }
    if let Some(early) = early {
        early?;
        bail!("somebody ended early");
    }
    println!("calm after {} s", plan.seconds);

    let mut dice = plan.dice("the end");
    dba::mend(&urls).await?;
    oracle::overtaken_are_named(&urls).await?;
    operators::resume_all(&desk, &mut dice).await?;
    drain(&desk, &mut dice, &mut relays).await?;
    until_empty(folder, &mut relays).await?;
    for relay in &relays {
        relay.told_of(tally);
    }
    let sent = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
    let mut verdict = judge(&Evidence::gather(&urls).await?, &sent);
    verdict.captured = tools::settle(&tools, &deleted, &mut dice).await.context("the tools, in calm")?;
    if !verdict.is_clean() {
        return Ok(verdict);
    }

    // What no order is promised for, or whose newest event was passed over, gets the documented remedy; then all rows are equal.
    resync(&urls, &verdict, &mut dice).await?;
    for relay in &mut relays {
        relay.start()?;
    }
    drain(&desk, &mut dice, &mut relays).await?;
    until_empty(folder, &mut relays).await?;
    let evidence = Evidence::gather(&urls).await?;
    let every: BTreeSet<&String> = evidence.legacy.keys().chain(evidence.new.keys()).collect();
    for id in every.into_iter().filter(|id| evidence.legacy.get(*id) != evidence.new.get(*id)) {
        verdict.differing.push(format!(
            "user {id}, after the remedy: legacy has {:?}, new has {:?}",
            evidence.legacy.get(id),
            evidence.new.get(id)
        ));
    }
    Ok(verdict)
}

/// What failed is passed over, so that those behind it go on, until nothing waits any more.
async fn drain(desk: &Desk, dice: &mut Dice, relays: &mut [Relay]) -> anyhow::Result<()> {
    let started = Instant::now();
    let (mut least, mut progress) = (i64::MAX, started);
    loop {
        let mut legacy = PgConnection::connect(&desk.urls.legacy).await?;
        let failed: Vec<i64> =
            sqlx::query_scalar("SELECT id FROM outbox WHERE status = 'failed' ORDER BY id LIMIT 500")
                .fetch_all(&mut legacy)
                .await?;
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox WHERE status IN ('pending', 'retry', 'held')")
            .fetch_one(&mut legacy)
            .await?;
        if failed.is_empty() && open == 0 {
            println!("drained in {:.0?}", started.elapsed());
            return Ok(());
        }
        for relay in &mut *relays {
            relay.must_run()?;
        }
        if !failed.is_empty() {
            operators::skip(desk, dice, &failed).await;
        }
        if open < least {
            (least, progress) = (open, Instant::now());
        }
        if progress.elapsed() > STUCK {
            let sql = "SELECT coalesce(string_agg(format('%s %s %s %s: %s', id, aggregate_type, aggregate_id, status, last_error), E'\n'), '')
                       FROM (SELECT * FROM outbox WHERE status IN ('pending', 'retry', 'held', 'failed') ORDER BY id LIMIT 10) x";
            let some: String = sqlx::query_scalar(sql).fetch_one(&mut legacy).await?;
            let ready = operators::readiness(desk).await;
            bail!("{open} events wait, and have for {STUCK:?} with no fault any more:\n{some}\n{ready}");
        }
        pause(Duration::from_millis(200), &CancellationToken::new()).await;
    }
}

/// All relays end well, and `run --until-empty` finds both logs equal and nothing left.
async fn until_empty(folder: &Folder, relays: &mut [Relay]) -> anyhow::Result<()> {
    for relay in relays {
        relay.terminate().await?;
    }
    let config = folder.path.join("setup/outbox-relay.toml");
    let output = relays::command(&config, &["run", "--until-empty", "--timeout", "60s"]).output()?;
    ensure!(
        output.status.success(),
        "run --until-empty: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn resync(urls: &Urls, verdict: &Verdict, dice: &mut Dice) -> anyhow::Result<()> {
    let mut legacy = PgConnection::connect(&urls.legacy).await?;
    for (kind, aggregate) in &verdict.to_resync {
        legacy.execute(AssertSqlSafe(writers::once_more(kind, aggregate, dice))).await?;
    }
    legacy.execute("DELETE FROM outbox_relay.divergent").await?;
    Ok(())
}

/// How many processes name this place, and this word, in their command lines.
fn processes_of(place: &Path, word: &str) -> usize {
    let place = place.to_string_lossy();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(&*place) && line.contains(word))
        .count()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(120), "not within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_soak_that_is_killed_leaves_no_process_and_no_file() {
    let place = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let mut soak = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "whatever_fails_nothing_is_lost_doubled_disordered_or_different"])
        .env("OUTBOX_RELAY_SOAK_SECONDS", "600")
        .env("TMPDIR", place.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("relays run", || processes_of(place.path(), "relay-1/") > 0).await;
    kill(Pid::from_raw(i32::try_from(soak.id()).unwrap()), Signal::SIGKILL).unwrap();
    assert!(!soak.wait().unwrap().success());
    until("all is gone", || {
        processes_of(place.path(), "") == 0 && std::fs::read_dir(place.path()).unwrap().count() == 0
    })
    .await;
}
