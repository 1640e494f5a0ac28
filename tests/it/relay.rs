//! The core: what is written to the outbox arrives in the new database, once and in order.

use crate::support::stage::Stage;

#[tokio::test]
async fn an_event_becomes_a_row() {
    let stage = Stage::new().await;
    let shared = stage.shared().await;
    assert_eq!(shared.router().errors, vec![]);
    let first = stage.user(1, "UserCreated", "Ada", 1).await;
    stage.user(1, "UserUpdated", "Ada Lovelace", 2).await;
    stage.user(2, "UserCreated", "Bob", 1).await;
    stage.user(2, "UserDeleted", "Bob", 2).await;
    stage.thing("a", 1).await;
    stage.thing("a", 2).await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.status(first).await, "processed");
    let rows: String = stage.pair.new.value("SELECT string_agg(id || name || version, ',') FROM users").await;
    assert_eq!(rows, "1Ada Lovelace2");
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_running_relay_drains_the_outbox() {
    let stage = Stage::new().await;
    let running = stage.start().await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'Thing', (i % 100)::text, 'Happened', jsonb_build_object('version', i) FROM generate_series(1, 20000) i",
        )
        .await;
    stage.drained().await;
    running.stop().await;
    stage.oracle_agrees().await;
}
