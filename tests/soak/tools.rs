//! The tools of the migration, as an operator runs them: processes that copy, verify and repair the captured table, and that end at any
//! moment. Beside them somebody changes rows of the new table by hand, for them to find.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use outbox_relay::verify::{Difference, Kind, Outcome, Report};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::captured::{self, Customers, Suspicion};
use crate::dba::Urls;
use crate::plan::{DEADLINE, Deck, Dice, pause};
use crate::process::{Process, said};
use crate::proxy::{Dropped, Proxy};
use crate::relays::command;
use crate::servers::Lost;
use crate::shop;
use crate::tally::Tally;

/// For what ends by itself, when all is calm.
const CALM: Duration = Duration::from_secs(120);
/// Their databases are far away: what they hold is held for a while, and costs nobody any work.
const FAR: Duration = Duration::from_millis(10);
/// What is spared, or has got over what happened to it, is ended after so long: another one goes on.
const LIFE: Duration = Duration::from_secs(10);

/// What they have in common.
#[derive(Clone)]
pub struct Tools {
    config: PathBuf,
    legacy: Proxy,
    new: Proxy,
    urls: Urls,
    tally: Tally,
    lost: Lost,
    memory: Arc<Mutex<Memory>>,
    starts: Arc<AtomicU32>,
}

/// What is known of the run whatever a database may forget.
#[derive(Default)]
struct Memory {
    by_hand: BTreeSet<i64>,
    suspicions: Vec<Suspicion>,
}

/// A process, and where it writes what it prints.
struct Tool {
    process: Process,
    printed: PathBuf,
}

impl Tool {
    fn said(&self) -> String {
        said(&self.printed)
    }
}

impl Tools {
    pub fn new(config: PathBuf, legacy: Proxy, new: Proxy, urls: Urls, tally: Tally, lost: Lost) -> Tools {
        let tools = Tools { config, legacy, new, urls, tally, lost, memory: Arc::default(), starts: Arc::default() };
        tools.are_far();
        tools
    }

    fn are_far(&self) {
        for proxy in [&self.legacy, &self.new] {
            proxy.calm();
            proxy.delay(FAR);
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most of the time somebody looks first whether both databases answer: there is much to be met by those who have begun.
    async fn look_first(&self, dice: &mut Dice, over: &CancellationToken) {
        if dice.one_in(5) {
            return;
        }
        let both = async || {
            let (legacy, new) = (PgConnection::connect(&self.urls.legacy), PgConnection::connect(&self.urls.new));
            tokio::time::timeout(Duration::from_secs(2), async { tokio::try_join!(legacy, new) }).await
        };
        while !over.is_cancelled() && !matches!(both().await, Ok(Ok(_))) {
            pause(Duration::from_millis(100), over).await;
        }
    }

    fn start(&self, arguments: &[&str]) -> anyhow::Result<Tool> {
        let n = self.starts.fetch_add(1, Ordering::SeqCst);
        let folder = self.config.parent().unwrap_or(Path::new("/"));
        let file = |what: &str| folder.join(format!("{n:04}-{}-{what}", arguments[0]));
        let mut tool = command(&self.config, arguments);
        tool.stdout(File::create(file("printed"))?);
        Ok(Tool { process: Process::start(tool, file("log"))?, printed: file("printed") })
    }

    /// Lets it end by itself; its exit code. `None`: it lived for too long, or it is over before, and it was killed.
    async fn ends(&self, tool: &mut Tool, over: &CancellationToken) -> anyhow::Result<Option<i32>> {
        let started = Instant::now();
        loop {
            if let Some(status) = tool.process.ended()? {
                tool.process.nothing_odd()?;
                // Told to end before it listened: as good as told a moment later.
                let code = status.signal().filter(|signal| *signal == Signal::SIGINT as i32).map(|_| 1);
                let code = code.or(status.code()).filter(|code| (0..=2).contains(code));
                return code.map(Some).with_context(|| format!("it ended with {status}\n{}", tool.process.log_tail()));
            }
            if over.is_cancelled() || started.elapsed() > LIFE {
                tool.process.signal(Signal::SIGKILL);
                return Ok(None);
            }
            pause(Duration::from_millis(20), over).await;
        }
    }

    /// What it printed, when all is calm: it must end so.
    async fn says(&self, arguments: &[&str], expected: i32) -> anyhow::Result<String> {
        let mut tool = self.start(arguments)?;
        let Some(status) = tool.process.ends_within(CALM).await? else {
            bail!("{arguments:?} does not end, with no fault any more\n{}{}", tool.said(), tool.process.log_tail());
        };
        tool.process.nothing_odd()?;
        let (said, told) = (tool.said(), tool.process.log_tail());
        ensure!(status.code() == Some(expected), "{arguments:?} ended with {status}\n{said}{told}");
        Ok(said)
    }

    fn failovers_of_legacy(&self) -> usize {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Killed,
    Interrupted,
    Frozen,
    FrozenBeyondDeadline,
    PacketsDropped,
    Cuts,
    Beside,
    Spared,
}

const FATES: [Fate; 10] = [
    Fate::Killed,
    Fate::Killed,
    Fate::Killed,
    Fate::Interrupted,
    Fate::Frozen,
    Fate::FrozenBeyondDeadline,
    Fate::PacketsDropped,
    Fate::Cuts,
    Fate::Beside,
    Fate::Spared,
];

/// Copies again and again: what was not ended goes on, what was is sometimes begun anew.
pub async fn copy(tools: Tools, mut dice: Dice, over: CancellationToken) -> anyhow::Result<()> {
    let mut deck = Deck::of(&FATES);
    let mut anew = false;
    while !over.is_cancelled() {
        let restart: &[&str] = if anew { &["--restart", "--yes"] } else { &[] };
        let arguments = [&["backfill", "customers", "--json", "--patience", "500ms"], restart].concat();
        tools.look_first(&mut dice, &over).await;
        let mut tool = tools.start(&arguments)?;
        let fate = deck.draw(&mut dice);
        let code = copies(&tools, &mut tool, fate, &mut dice, &over).await?;
        anew = false;
        match code {
            Some(0) => {
                tools.tally.count("copy: ended with all rows");
                anew = dice.one_in(2);
                dice.rest(100, 1000, &over).await;
            }
            Some(1) => {
                tools.tally.count("copy: ended when told to, or with rows that wait for their events");
                anew = dice.one_in(2);
            }
            Some(_) => tools.tally.count("copy: could not go on"),
            None => tools.tally.count("copy: SIGKILL"),
        }
        dice.rest(50, 400, &over).await;
    }
    tools.are_far();
    Ok(())
}

async fn copies(
    tools: &Tools,
    tool: &mut Tool,
    fate: Fate,
    dice: &mut Dice,
    over: &CancellationToken,
) -> anyhow::Result<Option<i32>> {
    let beyond = DEADLINE.as_millis() as u64;
    if let Fate::Spared = fate {
        return tools.ends(tool, over).await;
    }
    let mut other = match fate {
        Fate::Beside => Some(tools.start(&["backfill", "customers", "--json", "--patience", "1s"])?),
        _ => None,
    };
    dice.rest(100, 2500, over).await;
    if tool.process.ended()?.is_some() {
        return tools.ends(tool, over).await;
    }
    let side = if dice.one_in(2) { &tools.legacy } else { &tools.new };
    match fate {
        Fate::Killed => {
            tool.process.signal(Signal::SIGKILL);
            return Ok(None);
        }
        Fate::Interrupted => {
            tool.process.ends_when_told(Signal::SIGINT).await.context("a copy")?;
            tools.tally.count("copy: SIGINT, ended soon");
        }
        Fate::Frozen | Fate::FrozenBeyondDeadline => {
            let (from, to, what) = match fate {
                Fate::Frozen => (100, beyond, "copy: SIGSTOP, then SIGCONT"),
                _ => (beyond + 3000, beyond + 6000, "copy: SIGSTOP beyond the deadline, then SIGCONT"),
            };
            tool.process.signal(Signal::SIGSTOP);
            dice.rest(from, to, over).await;
            tool.process.signal(Signal::SIGCONT);
            tools.tally.count(what);
        }
        Fate::PacketsDropped => {
            side.drop_packets(dice.pick(&[Dropped::ToServer, Dropped::ToRelay, Dropped::Both]));
            dice.rest(200, beyond + 3000, over).await;
            side.drop_packets(Dropped::None);
            tools.tally.count("tools: packets dropped for a while");
        }
        Fate::Cuts => {
            side.cut(dice.pick(&[50, 200]), dice.pick(&[3, 10]));
            dice.rest(1000, 3000, over).await;
            side.cut(0, 0);
        }
        Fate::Beside => {
            tools.tally.count("copy: two at once, one of them SIGKILL");
            other = None;
        }
        Fate::Spared => {}
    }
    drop(other);
    tools.ends(tool, over).await
}

/// Verifies again and again, and repairs now and then; what is found is looked into at once.
pub async fn verify(tools: Tools, mut dice: Dice, over: CancellationToken) -> anyhow::Result<()> {
    while !over.is_cancelled() {
        dice.rest(100, 1000, &over).await;
        if dice.one_in(3) && by_hand(&tools, &mut dice).await.is_ok() {
            tools.tally.count("by hand: a row of the new table changed, deleted or made up");
        }
        tools.look_first(&mut dice, &over).await;
        let failovers = tools.failovers_of_legacy();
        let mut tool = tools.start(&["verify", "customers", "--json"])?;
        if dice.one_in(4) {
            dice.rest(50, 1500, &over).await;
            // Which ends it, if it has not ended.
            drop(tool);
            tools.tally.count("verification: SIGKILL");
            continue;
        }
        let Some(code) = tools.ends(&mut tool, &over).await? else {
            tools.tally.count("verification: SIGKILL");
            continue;
        };
        tools.tally.count(match code {
            0 => "verification: equal",
            1 => "verification: found differences",
            _ => "verification: could not compare",
        });
        // What one found before it could not go on was found as well.
        if let Ok(report) = serde_json::from_str::<Report>(&tool.said()) {
            look_into(&tools, &report, failovers, &over).await?;
        }
        if code == 1 && dice.one_in(2) {
            let mut repair = tools.start(&REPAIR)?;
            if dice.one_in(3) {
                dice.rest(50, 1000, &over).await;
                tools.tally.count("repair: SIGKILL");
            } else {
                match tools.ends(&mut repair, &over).await? {
                    Some(0) => tools.tally.count("repair: ended well"),
                    Some(_) => tools.tally.count("repair: left rows alone, or could not go on"),
                    None => tools.tally.count("repair: SIGKILL"),
                }
            }
        }
    }
    Ok(())
}

const REPAIR: [&str; 7] = ["repair", "customers", "--apply", "--yes", "--json", "--reason", "soak"];

/// What nobody may do: rows of the new table change, go, or come, behind the relay's back, and unseen by those who watch it.
async fn by_hand(tools: &Tools, dice: &mut Dice) -> sqlx::Result<()> {
    let id = 1 + dice.below(shop::ROWS as u64) as i64;
    let (id, sql) = match dice.below(3) {
        0 => (id, format!("UPDATE customers SET name = 'by hand' WHERE id = {id}")),
        1 => (id, format!("DELETE FROM customers WHERE id = {id}")),
        _ => (-id, format!("INSERT INTO customers VALUES (-{id}, 'by hand', 0) ON CONFLICT DO NOTHING")),
    };
    // Before it is done: whoever finds it at once finds it rightly.
    tools.memory().by_hand.insert(id);
    let mut dba = PgConnection::connect(&tools.urls.new).await?;
    dba.execute("SET lock_timeout = '2s'; SET statement_timeout = '5s'; SET session_replication_role = replica")
        .await?;
    dba.execute(AssertSqlSafe(sql)).await.map(drop)
}

/// Whether what a verification found is so: changed by hand, divergent, or not copied yet. All else is kept, and asked about at the end.
async fn look_into(tools: &Tools, report: &Report, failovers: usize, over: &CancellationToken) -> anyhow::Result<()> {
    let (by_hand, found): (Vec<&Difference>, Vec<&Difference>) = {
        let memory = tools.memory();
        report.differences.iter().partition(|found| id(found).is_ok_and(|id| memory.by_hand.contains(&id)))
    };
    tools.tally.add("found by a verification: changed by hand", by_hand.len());
    if found.is_empty() {
        return Ok(());
    }
    let (divergent, there) = loop {
        match known(tools, report).await {
            Ok(known) => break known,
            Err(_) if over.is_cancelled() => return Ok(()),
            Err(_) => pause(Duration::from_millis(200), over).await,
        }
    };
    if tools.failovers_of_legacy() != failovers {
        tools.tally.add("found by a verification: not judged, for the legacy database has gone back", found.len());
        return Ok(());
    }
    for found in found {
        let id = id(found)?;
        if divergent.contains(&id) {
            tools.tally.count("found by a verification: divergent");
        } else if found.kind == Kind::MissingInNew && id <= shop::ROWS && !there.contains(&id) {
            tools.tally.count("found by a verification: not copied yet");
        } else {
            let what = format!("report {} at {}: {found:?}", report.id, report.started_at);
            tools.memory().suspicions.push(Suspicion { id, what });
        }
    }
    Ok(())
}

/// Customers that are divergent; and those that were in the new table before the report was begun, whether or not they are there now.
async fn known(tools: &Tools, report: &Report) -> sqlx::Result<(BTreeSet<i64>, BTreeSet<i64>)> {
    let mut legacy = PgConnection::connect(&tools.urls.legacy).await?;
    let mut new = PgConnection::connect(&tools.urls.new).await?;
    let divergent = captured::divergent(&mut legacy).await?;
    let there = sqlx::query_scalar("SELECT id FROM customers WHERE came_at < $1 UNION SELECT id FROM gone")
        .bind(report.started_at)
        .fetch_all(&mut new)
        .await?;
    Ok((divergent, there.into_iter().collect()))
}

fn id(found: &Difference) -> anyhow::Result<i64> {
    let key = found.key.first().and_then(Option::as_deref).context("a key")?;
    key.parse().with_context(|| format!("{found:?}"))
}

/// When all is calm, and every event applied: the copy ends, what is to be explained is, what is to be remedied is, and then a verification
/// finds what is wrong, no more and no less, and nothing after a repair. What was found.
pub async fn settle(tools: &Tools, deleted: &shop::Deleted, dice: &mut Dice) -> anyhow::Result<captured::Verdict> {
    let Tools { urls, .. } = tools;
    for proxy in [&tools.legacy, &tools.new] {
        proxy.calm();
    }
    let printed = tools.says(&["backfill", "customers", "--json", "--patience", "30s"], 0).await?;
    let last = printed.lines().last().unwrap_or_default();
    ensure!(last.contains(r#""state":"done""#), "a copy ended well, and its last word was {last:?}");
    tools.says(&["capture", "status"], 0).await?;
    let before = Customers::gather(urls).await?;
    let forgotten = captured::deletions_lost(deleted, &tools.lost);
    let mut verdict = {
        let memory = tools.memory();
        captured::judge(&before, &memory.by_hand, &forgotten, &memory.suspicions)
    };

    // What is documented for divergent aggregates.
    let why = ["--apply", "--yes", "--json", "--reason", "the end"];
    tools.says(&[&["resync", "customers", "--divergent"], &why[..]].concat(), 0).await?;
    let after = Customers::gather(urls).await?;
    ensure!(after.divergent.is_empty(), "resynced, and divergent still: {:?}", after.divergent);
    for id in after.differing().intersection(&before.divergent) {
        verdict.differing.push(format!("customer {id}, after the resync: {}", after.both(*id)));
    }

    for _ in 0..3 {
        by_hand(tools, dice).await?;
    }
    let wrong = Customers::gather(urls).await?.differing();
    let expected = i32::from(!wrong.is_empty());
    let report: Report = serde_json::from_str(&tools.says(&["verify", "customers", "--json"], expected).await?)?;
    let found: BTreeSet<i64> = report.differences.iter().map(id).collect::<Result<_, _>>()?;
    for id in found.symmetric_difference(&wrong) {
        let what = if wrong.contains(id) { "is wrong, and was not found" } else { "was found, and is right" };
        verdict.misjudged.push(format!("customer {id} {what}, in calm"));
    }
    tools.says(&REPAIR, 0).await?;
    let report: Report = serde_json::from_str(&tools.says(&["verify", "customers", "--json"], 0).await?)?;
    ensure!(report.outcome == Outcome::Equal, "{report:?}");
    let last = Customers::gather(urls).await?;
    for id in last.differing() {
        verdict.differing.push(format!("customer {id}, after the repair: {}", last.both(id)));
    }
    verdict.went_back.extend(last.unexplained(&before.divergent));
    verdict.went_back.sort();
    verdict.went_back.dedup();
    tools
        .tally
        .add("copies, verifications and repairs that were started", tools.starts.load(Ordering::SeqCst) as usize);
    println!("{} customers on both sides, {} of them divergent before", last.legacy.len(), before.divergent.len());
    Ok(verdict)
}
