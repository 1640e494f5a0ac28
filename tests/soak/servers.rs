//! What happens to a server: it is killed, restarted, frozen, full, crowded out, and gone back to what a lagging replica had.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outbox_relay::demo::server::{Mode, Snapshot};
use sqlx::{Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::ground::Side;
use crate::plan::{DEADLINE, Deck, Dice, OLDEST_SNAPSHOT, pause};
use crate::tally::Tally;

#[derive(Clone, Copy)]
enum Fault {
    Immediate,
    Killed,
    Frozen,
    FrozenBeyondDeadline,
    DiskFull,
    NoConnections,
    FailOver,
}

const FAULTS: [Fault; 7] = [
    Fault::Immediate,
    Fault::Killed,
    Fault::Frozen,
    Fault::FrozenBeyondDeadline,
    Fault::DiskFull,
    Fault::NoConnections,
    Fault::FailOver,
];

/// A replica would have this, had it received nothing since.
struct Replica {
    snapshot: Snapshot,
    as_of: Instant,
}

/// In the last ten of every thirty seconds nothing new happens to either server: what needs both for a while (a copy, a verification) is to
/// come to an end now and then, beside everything else that goes on.
const PERIOD: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_secs(20);

/// What the legacy database has lost: whatever it committed between these times.
pub type Lost = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// Until it is over; the server is up then, and its disk has room.
pub async fn happen(
    mut side: Side,
    failovers: bool,
    mut dice: Dice,
    (tally, lost): (Tally, Lost),
    over: CancellationToken,
) -> anyhow::Result<Side> {
    let mut deck = Deck::of(&FAULTS);
    let mut replicas: Vec<Replica> = Vec::new();
    let began = Instant::now();
    while !over.is_cancelled() {
        dice.rest(2000, 8000, &over).await;
        let at = Duration::from_millis(began.elapsed().as_millis() as u64 % PERIOD.as_millis() as u64);
        if at > BUSY {
            pause(PERIOD - at, &over).await;
        }
        let fault = deck.draw(&mut dice);
        if !failovers && matches!(fault, Fault::FailOver) {
            continue;
        }
        if let Fault::FailOver = fault {
            fail_over(&mut side, &mut replicas, &mut dice, (&tally, &lost), &over).await?;
        } else {
            happens(&mut side, fault, &mut dice, &tally, &over).await?;
        }
        let newest = replicas.last().map(|replica| replica.as_of.elapsed());
        if failovers && newest.is_none_or(|age| age > Duration::from_secs(8)) {
            take_snapshot(&mut side, &mut replicas).await?;
        }
    }
    Ok(side)
}

/// Two are kept: the newest is not always the one that takes over.
async fn take_snapshot(side: &mut Side, replicas: &mut Vec<Replica>) -> anyhow::Result<()> {
    let as_of = Instant::now();
    replicas.push(Replica { snapshot: side.server.snapshot().await?, as_of });
    while replicas.len() > 2 {
        replicas.remove(0).snapshot.discard()?;
    }
    Ok(())
}

async fn fail_over(
    side: &mut Side,
    replicas: &mut Vec<Replica>,
    dice: &mut Dice,
    (tally, lost): (&Tally, &Lost),
    over: &CancellationToken,
) -> anyhow::Result<()> {
    if replicas.last().is_none_or(|replica| replica.as_of.elapsed() > OLDEST_SNAPSHOT) {
        take_snapshot(side, replicas).await?;
    }
    // It lags a little more.
    dice.rest(100, 4000, over).await;
    let young = replicas.iter().filter(|replica| replica.as_of.elapsed() < OLDEST_SNAPSHOT).count();
    let Some(which) = replicas.len().checked_sub(1 + dice.below(young.max(1) as u64) as usize) else { return Ok(()) };
    if side.name == "legacy" {
        // It is away already when this time comes.
        let end = Instant::now() + Duration::from_secs(1);
        lost.lock().unwrap_or_else(PoisonError::into_inner).push((replicas[which].as_of, end));
    }
    side.server.go_back_to(&replicas[which].snapshot).await?;
    // What is newer belongs to a history that nobody has any more.
    for replica in replicas.drain(which + 1..) {
        replica.snapshot.discard()?;
    }
    tally.count(match side.name {
        "legacy" => "legacy server: failed over to a lagging replica",
        _ => "new server: failed over to a lagging replica",
    });
    Ok(())
}

async fn happens(
    side: &mut Side,
    fault: Fault,
    dice: &mut Dice,
    tally: &Tally,
    over: &CancellationToken,
) -> anyhow::Result<()> {
    let beyond = DEADLINE.as_millis() as u64;
    match fault {
        Fault::Immediate => {
            side.server.stop(Mode::Immediate).await?;
            dice.rest(0, 3000, over).await;
            side.server.restart().await?;
            tally.count("server: stopped at once, and started");
        }
        Fault::Killed => {
            side.server.kill().await;
            dice.rest(0, 3000, over).await;
            side.server.restart().await?;
            tally.count("server: all processes SIGKILL, and started");
        }
        Fault::Frozen | Fault::FrozenBeyondDeadline => {
            let (from, to, what) = match fault {
                Fault::Frozen => (50, beyond, "server: SIGSTOP, then SIGCONT"),
                _ => (beyond + 1000, beyond + 6000, "server: SIGSTOP beyond the deadline, then SIGCONT"),
            };
            side.server.freeze();
            dice.rest(from, to, over).await;
            side.server.thaw();
            tally.count(what);
        }
        Fault::DiskFull => {
            let Some(disk) = &side.disk else {
                tally.count("server: disk full: skipped, this user cannot mount one");
                return Ok(());
            };
            disk.fill()?;
            dice.rest(1000, 6000, over).await;
            disk.make_room()?;
            tally.count("server: disk full for a while");
            // Postgres itself may have given up over it, which is for its supervisor to mend.
            if !answers(side).await {
                side.server.stop(Mode::Immediate).await?;
                side.server.restart().await?;
                tally.count("server: ended by its full disk, and started");
            }
        }
        Fault::NoConnections => {
            if no_connections(side, dice, over).await {
                tally.count("server: all connections taken for a while");
            }
        }
        Fault::FailOver => {}
    }
    Ok(())
}

async fn answers(side: &Side) -> bool {
    for _ in 0..40 {
        if let Ok(Ok(connection)) =
            tokio::time::timeout(Duration::from_secs(5), PgConnection::connect(&side.url())).await
        {
            let _ = connection.close().await;
            return true;
        }
        pause(Duration::from_millis(250), &CancellationToken::new()).await;
    }
    false
}

/// Takes all that are left but the superuser's, ends some of the relays', and takes those too.
async fn no_connections(side: &Side, dice: &mut Dice, over: &CancellationToken) -> bool {
    let url = side.url().replace("postgres://postgres@", "postgres://hog@");
    let mut taken = Vec::new();
    let Ok(mut dba) = PgConnection::connect(&side.url()).await else { return false };
    let mut full = false;
    for _ in 0..5 {
        while taken.len() < 150 {
            match PgConnection::connect(&url).await {
                Ok(connection) => taken.push(connection),
                Err(error) => {
                    full |= error.as_database_error().and_then(|e| e.code()).as_deref() == Some("53300");
                    break;
                }
            }
        }
        let end_some = "SELECT count(pg_terminate_backend(pid)) FROM (
            SELECT pid FROM pg_stat_activity WHERE usename = 'relay' ORDER BY random() LIMIT 5) s";
        let _ = dba.execute(end_some).await;
        dice.rest(100, 700, over).await;
    }
    full
}
