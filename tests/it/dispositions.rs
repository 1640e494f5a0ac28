//! Whose an error is, and what then becomes of the event, of those behind it, and of everybody else.

use std::time::Duration;

use outbox_relay::config::{Action, Config, DatabaseUrl, Entity, OnFailure, TableName};
use sqlx::{Connection, Executor, PgConnection};

use crate::support::stage::{NEW_SCHEMA, Running, Stage, file, oracle, users};
use crate::support::{DEADLINE, eventually, pair};

/// An entity whose only event is an upsert through this mapping.
fn entity(aggregate_type: &str, table: &str, mapping: &str) -> Entity {
    Entity {
        name: table.into(),
        line: 3,
        aggregate_type: aggregate_type.into(),
        table: Some(TableName { schema: "public".into(), table: table.into() }),
        key: vec!["id".into()],
        replace_by: Vec::new(),
        legacy: None,
        verify: Default::default(),
        mapping: Some(file("mapping.sql", mapping)),
        string_payloads: false,
        on_failure: OnFailure::Hold,
        events: [("Changed".to_owned(), Action::Upsert)].into(),
    }
}

fn orders() -> Entity {
    entity("Order", "orders", "SELECT payload->>'id' AS id, payload->>'user' AS user_id FROM event")
}

/// A stage whose new database has more tables before the relay compiles its mappings.
async fn stage(tables: &str, change: impl FnOnce(&mut Config)) -> Stage {
    let pair = pair().await;
    pair.new.run(NEW_SCHEMA).await;
    pair.new.run(tables).await;
    Stage::on_prepared(pair, change).await
}

async fn order(stage: &Stage, id: i64, user: i64) -> i64 {
    stage.event("Order", &id.to_string(), "Changed", &format!("{{\"id\": {id}, \"user\": {user}}}")).await
}

async fn becomes(stage: &Stage, id: i64, status: &str) {
    eventually(DEADLINE, &format!("{id} is {status}"), || async { stage.status(id).await == status }).await;
}

async fn attempts(stage: &Stage) -> i64 {
    stage.pair.legacy.value("SELECT sum(attempts)::bigint FROM outbox").await
}

fn stopped(running: &Running) -> Vec<String> {
    running
        .shared
        .stops
        .report()
        .into_iter()
        .map(|report| format!("{}: {}", report.aggregate_type, report.stop.code))
        .collect()
}

/// A user's event that the mapping refuses: its version is no number.
async fn poison(stage: &Stage, id: i64) -> i64 {
    stage
        .event(
            "User",
            &id.to_string(),
            "UserUpdated",
            &format!("{{\"id\": {id}, \"name\": \"x\", \"version\": \"x\"}}"),
        )
        .await
}

/// What an operator's replay does.
async fn replay(stage: &Stage, id: i64) {
    let sql = format!(
        "BEGIN; SELECT * FROM outbox_relay.lane FOR UPDATE;
         INSERT INTO outbox_relay.put_back (lane, id) SELECT lane, {id} FROM outbox_relay.lane;
         UPDATE outbox SET status = 'pending', attempts = 0 WHERE id = {id}; COMMIT"
    );
    stage.pair.legacy.run(&sql).await;
}

#[tokio::test]
async fn a_poison_event_holds_back_its_aggregate_in_order_and_nobody_else() {
    let stage = stage("", |_| {}).await;
    let running = stage.start().await;
    let bad = poison(&stage, 1).await;
    let behind = [stage.user(1, "UserUpdated", "second", 2).await, stage.user(1, "UserUpdated", "third", 3).await];
    for id in 2..30 {
        stage.user(id, "UserCreated", "other", 1).await;
    }
    becomes(&stage, bad, "failed").await;
    stage.drained().await;
    assert_eq!(stage.count("processed").await, 28);
    for id in behind {
        assert_eq!(stage.status(id).await, "held");
    }
    assert_eq!(stopped(&running), [""; 0]);
    // Attempts as configured: three, the second and third after 50 and 100 ms, half of which either way is chance.
    let gaps: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM at - lag(at) OVER (ORDER BY at))::float8 FROM outbox_relay.attempt WHERE id = $1 ORDER BY at OFFSET 1",
    )
    .bind(bad)
    .fetch_all(&stage.pair.legacy.pool)
    .await
    .unwrap();
    assert!(gaps.len() == 2 && gaps[0] >= 0.025 && gaps[1] >= 0.05, "{gaps:?}");
    let error: String = stage.pair.legacy.value(&format!("SELECT last_error FROM outbox WHERE id = {bad}")).await;
    assert!(error.starts_with("22P02: invalid input syntax for type integer"), "{error}");
    // Its cause is mended, it is replayed: those behind it follow, in order.
    stage
        .pair
        .legacy
        .run(&format!("UPDATE outbox SET payload = payload || '{{\"version\": 1}}' WHERE id = {bad}"))
        .await;
    replay(&stage, bad).await;
    for id in behind {
        becomes(&stage, id, "processed").await;
    }
    running.stop().await;
    assert_eq!(stage.pair.new.value::<String>("SELECT name FROM users WHERE id = 1").await, "third");
    assert_eq!(stage.pair.legacy.value::<i64>("SELECT count(*) FROM outbox_relay.failure").await, 0);
}

#[tokio::test]
async fn with_pass_those_behind_a_failed_event_go_on() {
    let stage = stage("", |config| {
        config.entities[0].on_failure = OnFailure::Pass;
        // Long enough to be seen waiting on a slow machine.
        (config.retry.initial, config.retry.max, config.retry.attempts) =
            (Duration::from_secs(2), Duration::from_secs(2), 2);
    })
    .await;
    let shared = stage.shared().await;
    let bad = poison(&stage, 1).await;
    let behind = stage.user(1, "UserUpdated", "second", 2).await;
    // While it may still be applied, they wait.
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!((stage.status(bad).await, stage.status(behind).await), ("retry".into(), "held".into()));
    eventually(DEADLINE, "it fails", || async {
        stage.heal_by_hand(&shared).await;
        stage.status(bad).await == "failed"
    })
    .await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.status(behind).await, "processed");
    let last = stage.user(1, "UserUpdated", "third", 3).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.status(last).await, "processed");
}

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint REFERENCES users)";

#[tokio::test]
async fn a_child_waits_for_its_parent_without_counting_attempts() {
    let stage = stage(ORDERS, |config| config.entities.push(orders())).await;
    let running = stage.start().await;
    let mut children = Vec::new();
    for id in 1..=30 {
        children.push(order(&stage, id, 1).await);
    }
    for id in &children {
        becomes(&stage, *id, "retry").await;
    }
    eventually(DEADLINE, "they were tried again and again", || async {
        stage.pair.legacy.value::<i64>("SELECT count(*) FROM outbox_relay.attempt").await > 90
    })
    .await;
    assert_eq!(stopped(&running), [""; 0]);
    stage.user(1, "UserCreated", "parent", 1).await;
    stage.drained().await;
    running.stop().await;
    assert_eq!(attempts(&stage).await, 0);
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM orders").await, 30);
}

#[tokio::test]
async fn a_child_whose_parent_never_comes_fails_after_its_patience() {
    let change = |config: &mut Config| {
        config.entities.push(orders());
        config.retry.patience = Duration::from_millis(300);
        config.retry.attempts = 2;
    };
    let stage = stage(ORDERS, change).await;
    let running = stage.start().await;
    let id = order(&stage, 1, 99).await;
    becomes(&stage, id, "failed").await;
    running.stop().await;
    assert_eq!(attempts(&stage).await, 2);
    let waited = "SELECT extract(epoch FROM last_at - first_at) >= 0.3 FROM outbox_relay.failure";
    assert!(stage.pair.legacy.value::<bool>(waited).await);
}

#[tokio::test]
async fn many_children_do_not_stop_the_type_of_their_own_parent() {
    let tables = "CREATE TABLE nodes (id bigint PRIMARY KEY, parent bigint REFERENCES nodes)";
    let nodes = entity("Node", "nodes", "SELECT payload->>'id' AS id, payload->>'parent' AS parent FROM event");
    let stage = stage(tables, |config| config.entities.push(nodes)).await;
    let running = stage.start().await;
    for id in 2..60 {
        stage.event("Node", &id.to_string(), "Changed", &format!("{{\"id\": {id}, \"parent\": 1}}")).await;
    }
    eventually(DEADLINE, "all wait", || async { stage.count("retry").await == 58 }).await;
    stage.event("Node", "1", "Changed", "{\"id\": 1, \"parent\": null}").await;
    stage.drained().await;
    running.stop().await;
    assert_eq!((stage.count("processed").await, attempts(&stage).await), (59, 0));
}

#[tokio::test]
async fn a_value_that_another_row_still_has_is_waited_for() {
    let stage = stage("ALTER TABLE users ADD UNIQUE (name)", |_| {}).await;
    let running = stage.start().await;
    let first = stage.user(1, "UserCreated", "Ada", 1).await;
    becomes(&stage, first, "processed").await;
    let wants = stage.user(2, "UserCreated", "Ada", 1).await;
    becomes(&stage, wants, "retry").await;
    stage.user(1, "UserUpdated", "Grace", 2).await;
    becomes(&stage, wants, "processed").await;
    running.stop().await;
    assert_eq!(attempts(&stage).await, 0);
}

#[tokio::test]
async fn deferred_constraints_are_met_before_the_commit() {
    let tables =
        "CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint REFERENCES users DEFERRABLE INITIALLY DEFERRED)";
    let stage = stage(tables, |config| {
        config.relay.lanes = 1;
        config.entities.push(orders());
    })
    .await;
    let shared = stage.shared().await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    let good = order(&stage, 1, 1).await;
    let orphan = order(&stage, 2, 7).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!((stage.status(good).await, stage.status(orphan).await), ("processed".into(), "retry".into()));
    stage.user(7, "UserCreated", "Bob", 1).await;
    eventually(DEADLINE, "its parent has come", || async {
        stage.heal_by_hand(&shared).await;
        stage.status(orphan).await == "processed"
    })
    .await;
    assert_eq!(attempts(&stage).await, 0);
}

#[tokio::test]
async fn a_constraint_that_is_made_while_the_relay_runs_and_checked_at_the_commit_stops_only_who_breaks_it() {
    let stage = stage("CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint)", |config| {
        config.relay.lanes = 1;
        config.entities.push(orders());
    })
    .await;
    let running = stage.start().await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    let before = order(&stage, 1, 1).await;
    becomes(&stage, before, "processed").await;
    let late = "ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users DEFERRABLE INITIALLY DEFERRED";
    stage.pair.new.run(late).await;
    let orphan = order(&stage, 2, 7).await;
    let good = order(&stage, 3, 1).await;
    becomes(&stage, good, "processed").await;
    becomes(&stage, orphan, "retry").await;
    stage.user(7, "UserCreated", "Bob", 1).await;
    becomes(&stage, orphan, "processed").await;
    running.stop().await;
}

/// Types in C that give their errors no code raise XX000, and what a tsquery is refused for has the code of a statement that is wrong.
#[tokio::test]
async fn what_one_value_is_refused_for_is_its_events_affair_whatever_its_code() {
    let tables = "CREATE TABLE searches (id bigint PRIMARY KEY, query tsquery);
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.name ~ '^[0-9A-Z]{5}$' THEN RAISE 'no geometry' USING ERRCODE = NEW.name; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse()";
    let stage = stage(tables, |config| {
        config.relay.lanes = 1;
        let mapping = "SELECT payload->>'id' AS id, payload->>'query' AS query FROM event";
        config.entities.push(entity("Search", "searches", mapping));
    })
    .await;
    let search = async |id: i64, query: &str| {
        stage.event("Search", &id.to_string(), "Changed", &format!("{{\"id\": {id}, \"query\": \"{query}\"}}")).await
    };
    let mut bad = vec![search(1, "a b").await];
    for (id, code) in [(1, "XX000"), (2, "0A000"), (3, "42883")] {
        bad.push(stage.user(id, "UserCreated", code, 1).await);
    }
    let good = [search(2, "a & b").await, stage.user(4, "UserCreated", "Ada", 1).await];
    let running = stage.start().await;
    for id in good {
        becomes(&stage, id, "processed").await;
    }
    for id in bad {
        becomes(&stage, id, "failed").await;
    }
    assert_eq!(stopped(&running), [""; 0]);
    running.stop().await;
}

#[tokio::test]
async fn a_locked_row_holds_up_only_the_events_that_meet_it() {
    let stage = stage("", |config| {
        config.relay.lanes = 1;
        config.relay.deadline = Duration::from_millis(1500);
    })
    .await;
    let running = stage.start().await;
    let first = stage.user(1, "UserCreated", "Ada", 1).await;
    becomes(&stage, first, "processed").await;
    let mut somebody = PgConnection::connect(&stage.pair.new.url).await.unwrap();
    somebody.execute("BEGIN; UPDATE users SET version = 0 WHERE id = 1").await.unwrap();
    let meets = stage.user(1, "UserUpdated", "Grace", 2).await;
    let others = [stage.user(2, "UserCreated", "Bob", 1).await, stage.user(3, "UserCreated", "Eve", 1).await];
    for id in others {
        becomes(&stage, id, "processed").await;
    }
    becomes(&stage, meets, "retry").await;
    somebody.execute("ROLLBACK").await.unwrap();
    becomes(&stage, meets, "processed").await;
    running.stop().await;
    assert_eq!(attempts(&stage).await, 0);
}

#[tokio::test]
async fn one_event_that_waits_among_hundreds_is_found_within_the_deadline() {
    let stage = stage("", |config| {
        config.relay.lanes = 1;
        config.relay.deadline = Duration::from_secs(2);
    })
    .await;
    let shared = stage.shared().await;
    let first = stage.user(1, "UserCreated", "Ada", 1).await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.status(first).await, "processed");
    let mut somebody = PgConnection::connect(&stage.pair.new.url).await.unwrap();
    somebody.execute("BEGIN; UPDATE users SET version = 0 WHERE id = 1").await.unwrap();
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', i, 'UserUpdated', jsonb_build_object('id', i, 'name', 'x', 'version', i) FROM generate_series(1, 400) i",
        )
        .await;
    let running = stage.start().await;
    eventually(DEADLINE, "the others flow", || async { stage.count("processed").await == 400 }).await;
    somebody.execute("ROLLBACK").await.unwrap();
    eventually(DEADLINE, "all flow", || async { stage.count("processed").await == 401 }).await;
    running.stop().await;
    assert_eq!(attempts(&stage).await, 0);
}

#[tokio::test]
async fn what_was_passed_over_is_not_revived_with_its_attempts() {
    let stage = stage("", |config| config.relay.lanes = 1).await;
    let shared = stage.shared().await;
    let id = stage.user(1, "UserCreated", "Ada", 1).await;
    stage.pair.legacy.run("UPDATE outbox SET status = 'failed', attempts = 3").await;
    for (pass, expected) in [(vec!["User".to_owned()], "failed"), (Vec::new(), "retry")] {
        let mut lane = shared.source.lock_lane(outbox_relay::event::Lane(0)).await.unwrap().unwrap();
        lane.give_back(&[outbox_relay::event::EventId(id)], &pass).await.unwrap();
        lane.commit().await.unwrap();
        assert_eq!(stage.status(id).await, expected);
    }
}

// The operator's.

#[tokio::test]
async fn a_column_that_is_missing_stops_its_type_and_no_event_fails() {
    let stage = stage("", |_| {}).await;
    let running = stage.start().await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    stage.drained().await;
    stage.pair.new.run("ALTER TABLE users RENAME version TO v").await;
    for id in 2..50 {
        stage.user(id, "UserCreated", "x", 1).await;
    }
    let thing = stage.thing("a", 1).await;
    eventually(DEADLINE, "it stops", || async { stopped(&running) == ["User: refused.42703"] }).await;
    becomes(&stage, thing, "processed").await;
    assert_eq!((stage.count("pending").await, attempts(&stage).await), (48, 0));
    stage.pair.new.run("ALTER TABLE users RENAME v TO version").await;
    stage.drained().await;
    assert_eq!(stopped(&running), [""; 0]);
    running.stop().await;
    assert_eq!((stage.count("processed").await, attempts(&stage).await), (50, 0));
}

#[tokio::test]
async fn a_revoked_grant_stops_its_type_and_no_event_fails() {
    let mut stage = stage("", |_| {}).await;
    let role = format!("relay_{}", stage.pair.new.name);
    let all = "USAGE ON SCHEMA outbox_relay, public TO";
    let tables = "ALL ON ALL TABLES IN SCHEMA outbox_relay, public TO";
    stage
        .pair
        .new
        .run(&format!(
            "CREATE ROLE {role} LOGIN; GRANT {all} {role}; GRANT {tables} {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ))
        .await;
    stage.config.new.url = DatabaseUrl::parse(&stage.pair.new.url.replace("postgres@", &format!("{role}@"))).unwrap();
    let running = stage.start().await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    stage.drained().await;
    stage.pair.new.run(&format!("REVOKE ALL ON users FROM {role}")).await;
    for id in 2..10 {
        stage.user(id, "UserCreated", "x", 1).await;
    }
    let thing = stage.thing("a", 1).await;
    eventually(DEADLINE, "it stops", || async { stopped(&running) == ["User: refused.42501"] }).await;
    becomes(&stage, thing, "processed").await;
    assert_eq!((stage.count("pending").await, attempts(&stage).await), (8, 0));
    stage.pair.new.run(&format!("GRANT ALL ON users TO {role}")).await;
    stage.drained().await;
    running.stop().await;
    assert_eq!((stage.count("processed").await, attempts(&stage).await), (10, 0));
    stage.pair.new.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn an_unmapped_aggregate_type_waits_until_it_is_mapped() {
    let stage = stage("", |_| {}).await;
    let running = stage.start().await;
    let mut ghosts = Vec::new();
    for n in 0..5 {
        ghosts.push(stage.event("Ghost", &n.to_string(), "Appeared", "{}").await);
    }
    let thing = stage.thing("a", 1).await;
    eventually(DEADLINE, "it stops", || async { stopped(&running) == ["Ghost: unmapped"] }).await;
    becomes(&stage, thing, "processed").await;
    assert_eq!((stage.count("pending").await, attempts(&stage).await), (5, 0));
    let mut ghost = orders();
    (ghost.name, ghost.aggregate_type, ghost.table, ghost.mapping) = ("ghosts".into(), "Ghost".into(), None, None);
    ghost.events = [("Appeared".to_owned(), Action::Ignore)].into();
    running.shared.use_entities(vec![users(), oracle(), ghost], true).await.unwrap();
    stage.drained().await;
    running.stop().await;
    assert_eq!(stage.count("processed").await, 6);
}

#[tokio::test]
async fn an_unmapped_event_type_waits_and_holds_back_its_aggregate() {
    let stage = stage("", |_| {}).await;
    let shared = stage.shared().await;
    let first = stage.user(1, "UserCreated", "Ada", 1).await;
    let unmapped = stage.user(1, "UserPromoted", "Ada", 2).await;
    let behind = stage.user(1, "UserUpdated", "Grace", 3).await;
    let other = stage.user(2, "UserCreated", "Bob", 1).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    for (id, status) in [(first, "processed"), (unmapped, "held"), (behind, "held"), (other, "processed")] {
        assert_eq!(stage.status(id).await, status, "{id}");
    }
    let why: String = stage.pair.legacy.value(&format!("SELECT last_error FROM outbox WHERE id = {unmapped}")).await;
    assert!(why.contains("UserPromoted"), "{why}");
    assert_eq!(attempts(&stage).await, 0);
    // It is mapped: what waited flows by itself, in order.
    let running = stage.start().await;
    let mut mended = users();
    mended.events.insert("UserPromoted".to_owned(), Action::Upsert);
    running.shared.use_entities(vec![mended, oracle()], true).await.unwrap();
    for id in [unmapped, behind] {
        becomes(&stage, id, "processed").await;
    }
    running.stop().await;
    assert_eq!(stage.pair.new.value::<String>("SELECT name FROM users WHERE id = 1").await, "Grace");
}

#[tokio::test]
async fn a_lane_that_is_busy_when_its_event_type_is_mapped_is_swept_soon_after() {
    let stage = stage("", |config| config.relay.lanes = 1).await;
    let unmapped = stage.user(1, "UserPromoted", "Ada", 1).await;
    let running = stage.start().await;
    becomes(&stage, unmapped, "held").await;
    let mut busy = stage.pair.legacy.pool.begin().await.unwrap();
    busy.execute("SELECT FROM outbox_relay.lane FOR UPDATE").await.unwrap();
    let mut mended = users();
    mended.events.insert("UserPromoted".to_owned(), Action::Upsert);
    running.shared.use_entities(vec![mended, oracle()], true).await.unwrap();
    // Longer than it takes to find the lane locked, and much shorter than the pause between two sweeps.
    tokio::time::sleep(Duration::from_millis(300)).await;
    busy.rollback().await.unwrap();
    let soon = Duration::from_secs(10);
    eventually(soon, "it is processed", || async { stage.status(unmapped).await == "processed" }).await;
    running.stop().await;
}

#[tokio::test]
async fn one_poison_event_of_a_quiet_entity_does_not_stop_it() {
    let stage = stage("", |_| {}).await;
    let running = stage.start().await;
    let bad = poison(&stage, 1).await;
    becomes(&stage, bad, "failed").await;
    let good = stage.user(2, "UserCreated", "Bob", 1).await;
    becomes(&stage, good, "processed").await;
    assert_eq!(stopped(&running), [""; 0]);
    running.stop().await;
}

#[tokio::test]
async fn twenty_aggregates_in_a_row_that_fail_alike_are_the_operators_and_get_their_attempts_back() {
    let stage = stage("", |config| config.retry.initial = Duration::from_secs(1)).await;
    let running = stage.start().await;
    stage.pair.new.run("ALTER TABLE users ADD CONSTRAINT short CHECK (length(name) < 3)").await;
    for id in 1..=60 {
        stage.user(id, "UserCreated", "too long", 1).await;
    }
    eventually(DEADLINE, "it stops", || async { stopped(&running) == ["User: refused.23514"] }).await;
    stage.pair.new.run("ALTER TABLE users DROP CONSTRAINT short").await;
    stage.drained().await;
    assert_eq!(stopped(&running), [""; 0]);
    running.stop().await;
    assert_eq!((stage.count("processed").await, attempts(&stage).await), (60, 0));
}

/// Its own aggregate's next event would show that another passes, and must not go before it.
#[tokio::test]
async fn what_shows_that_others_pass_is_no_later_event_of_the_aggregate_that_failed() {
    let stage = stage("", |config| config.relay.lanes = 1).await;
    for id in 1..=20 {
        poison(&stage, id).await;
    }
    let behind = stage.user(20, "UserUpdated", "right again", 2).await;
    let running = stage.start().await;
    eventually(DEADLINE, "it stops", || async { stopped(&running) == ["User: refused.22P02"] }).await;
    assert_ne!(stage.status(behind).await, "processed");
    let good = stage.user(21, "UserCreated", "x", 1).await;
    becomes(&stage, good, "processed").await;
    becomes(&stage, behind, "held").await;
    running.stop().await;
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM users").await, 1);
}

/// One whose type is ignored goes through nothing, and so shows nothing.
#[tokio::test]
async fn what_shows_that_others_pass_goes_through_the_statement_that_failed() {
    let stage = stage("", |config| {
        config.relay.lanes = 1;
        config.entities[0].events.insert("UserSeen".into(), Action::Ignore);
    })
    .await;
    stage.pair.new.run("ALTER TABLE users ADD CONSTRAINT short CHECK (length(name) < 3)").await;
    for id in 1..=25 {
        stage.user(id, "UserCreated", "too long", 1).await;
    }
    stage.user(26, "UserSeen", "x", 1).await;
    let running = stage.start().await;
    eventually(DEADLINE, "it stops", || async { stopped(&running) == ["User: refused.23514"] }).await;
    stage.pair.new.run("ALTER TABLE users DROP CONSTRAINT short").await;
    stage.drained().await;
    running.stop().await;
    assert_eq!((stage.count("processed").await, attempts(&stage).await), (26, 0));
}

#[tokio::test]
async fn more_bad_events_than_stop_a_type_do_not_keep_it_from_those_behind_them() {
    let stage = stage("", |config| config.relay.lanes = 1).await;
    let running = stage.start().await;
    let mut bad = Vec::new();
    for id in 1..=30 {
        bad.push(poison(&stage, id).await);
    }
    eventually(DEADLINE, "it stops", || async { stopped(&running) == ["User: refused.22P02"] }).await;
    // Whoever wrote them writes them right again.
    let good = stage.user(31, "UserCreated", "x", 1).await;
    becomes(&stage, good, "processed").await;
    for id in bad {
        becomes(&stage, id, "failed").await;
    }
    assert_eq!(stopped(&running), [""; 0]);
    running.stop().await;
}

#[tokio::test]
async fn a_poison_event_at_the_front_does_not_keep_a_mended_type_stopped() {
    let stage = stage("", |config| config.relay.lanes = 1).await;
    let running = stage.start().await;
    stage.pair.new.run("ALTER TABLE users RENAME version TO v").await;
    let bad = poison(&stage, 1).await;
    for id in 2..30 {
        stage.user(id, "UserCreated", "x", 1).await;
    }
    eventually(DEADLINE, "it stops", || async { stopped(&running).len() == 1 }).await;
    stage.pair.new.run("ALTER TABLE users RENAME v TO version").await;
    becomes(&stage, bad, "failed").await;
    stage.drained().await;
    running.stop().await;
    assert_eq!((stage.count("processed").await, attempts(&stage).await), (28, 3));
}
