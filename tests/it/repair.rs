//! repair and resync: what verify found is made right from the legacy database, and nothing else is touched.

use outbox_relay::connect;
use outbox_relay::event::Lane;
use outbox_relay::job::{Kind, Via};
use outbox_relay::relay::batch::{self, Errand};
use outbox_relay::repair::{By, Repair, Repaired, Since, Task, Wanted};
use outbox_relay::source::RowKey;
use outbox_relay::verify::{Outcome, VerifyError};
use tokio_util::sync::CancellationToken;

use crate::support::past::Past;
use crate::support::stage::Stage;
use crate::verify::{Writers, inject, stage_of, verified};

/// `None`: the last report.
pub(crate) async fn repaired(stage: &Stage, wanted: Option<&Wanted>, apply: bool) -> Result<Repaired, VerifyError> {
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let by = By { actor: "ada".into(), reason: "a test".into(), command: Kind::Repair, via: Via::Command };
    let stop = CancellationToken::new();
    let repair = Repair {
        config: &stage.config,
        source: &source,
        target: &target,
        by: &by,
        apply,
        expected: None,
        stop: &stop,
        job: None,
    };
    let task = match wanted {
        Some(wanted) => Task::Resync(&stage.config.entities[0], wanted.clone()),
        None => Task::Reported(None, None),
    };
    repair.run(&task).await
}

#[tokio::test]
async fn repair_makes_every_fault_right_under_load_and_keeps_what_it_changed() {
    let stage = stage_of(10_000).await;
    let running = stage.start().await;
    let writers = Writers::start(&stage, 10_000, 1000);
    let expected = inject(&stage, 10_000).await;
    assert_eq!(verified(&stage).await.entities[0].differences(), expected.len() as u64);
    let planned = repaired(&stage, None, false).await.unwrap();
    assert_eq!((planned.written + planned.deleted, planned.left, planned.applied), (expected.len() as u64, 0, false));
    assert_eq!(verified(&stage).await.entities[0].differences(), expected.len() as u64, "nothing was changed");
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (planned.written, planned.deleted, 0), "{done:?}");
    let after = verified(&stage).await;
    assert_eq!(after.outcome, Outcome::Equal, "{after:?}");
    writers.stop().await;
    running.stop().await;
    let kept: String = stage
        .pair
        .new
        .value(
            "SELECT string_agg(DISTINCT concat_ws(' ', actor, reason, entity, action, (before IS NULL)::text, (after IS NULL)::text), ', ' ORDER BY
             concat_ws(' ', actor, reason, entity, action, (before IS NULL)::text, (after IS NULL)::text)) FROM outbox_relay.repaired",
        )
        .await;
    assert_eq!(
        kept,
        "ada a test users delete false true, ada a test users write false false, ada a test users write true false"
    );
    let rows: i64 = stage.pair.new.value("SELECT count(*) FROM outbox_relay.repaired").await;
    assert_eq!(rows, expected.len() as i64);
    // Again: there is nothing left to do.
    let again = repaired(&stage, None, true).await.unwrap();
    assert!(!again.changes_any(), "{again:?}");
}

#[tokio::test]
async fn a_row_whose_event_is_open_is_left_alone() {
    let stage = stage_of(10).await;
    stage.pair.new.run("UPDATE users SET name = 'x' WHERE id IN (3, 4)").await;
    verified(&stage).await;
    stage.user(3, "UserUpdated", "from an event", 2).await;
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.left), (1, 1), "{done:?}");
    assert_eq!(stage.pair.new.value::<String>("SELECT name FROM users WHERE id = 3").await, "x");
    assert_eq!(stage.pair.new.value::<String>("SELECT name FROM users WHERE id = 4").await, "name 4");
}

#[tokio::test]
async fn resync_takes_keys_and_a_span_of_time() {
    let stage = stage_of(20).await;
    let shared = stage.shared().await;
    let before = chrono::Utc::now() - chrono::Duration::minutes(1);
    stage.user(7, "UserUpdated", "name 7", 1).await;
    stage.drain_by_hand(&shared).await;
    stage
        .pair
        .new
        .run("UPDATE users SET name = 'x' WHERE id IN (7, 8, 9); INSERT INTO users VALUES (30, 'y', 1)")
        .await;
    let span = Wanted::Since(Since { since: before, until: None });
    let done = repaired(&stage, Some(&span), true).await.unwrap();
    assert_eq!((done.written, done.deleted), (1, 0), "{done:?}");
    let keys = Wanted::Keys(["8", "30", "99", "1"].map(|k| RowKey(vec![k.to_owned()])).into());
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.written, done.deleted), (1, 1), "{done:?}");
    let left: String =
        stage.pair.new.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM users WHERE name IN ('x', 'y')").await;
    assert_eq!(left, "9");
}

#[tokio::test]
async fn divergent_aggregates_are_made_right_and_are_divergent_no_more() {
    let stage = stage_of(5).await;
    let shared = stage.shared().await;
    let past = Past::of(&stage.pair.legacy).await;
    // What the legacy database will have forgotten: a change, and a user of its own.
    stage.pair.legacy.run("UPDATE users SET name = 'lost' WHERE id = 2; INSERT INTO users VALUES (6, 'lost', 1)").await;
    stage.user(2, "UserUpdated", "lost", 1).await;
    stage.user(6, "UserCreated", "lost", 1).await;
    stage.drain_by_hand(&shared).await;
    past.again(&stage.pair.legacy).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let divergent = || stage.pair.legacy.value::<i64>("SELECT count(*) FROM outbox_relay.divergent");
    assert_eq!(divergent().await, 2);
    let planned = repaired(&stage, Some(&Wanted::Divergent), false).await.unwrap();
    assert_eq!((planned.written, planned.deleted, planned.divergent_cleared), (1, 1, 0), "{planned:?}");
    assert_eq!(divergent().await, 2);
    let done = repaired(&stage, Some(&Wanted::Divergent), true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.divergent_cleared), (1, 1, 2), "{done:?}");
    assert_eq!(divergent().await, 0);
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
    let (_, _) = batch::run_once(&shared, Lane(0), Errand::default()).await.unwrap();
}
