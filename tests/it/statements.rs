//! Every file under `sql/` that the relay and its operators send is understood by the real schema, whatever things are called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use outbox_relay::config::{Columns, Config, StatusWords, TableName};
use outbox_relay::operator;
use outbox_relay::source::Names;
use outbox_relay::sql::{render, with_operators};
use outbox_relay::target;
use uuid::Uuid;

use crate::adoption::{DEBEZIUM, ENUM, debezium, words_of_enum};
use crate::support::stage::Stage;
use crate::support::{Database, pair};

/// Several statements that `init` runs as they are; each stage has run them.
const SCRIPTS: [&str; 2] = ["schema", "outbox"];

/// The files of a folder, by name, as they stand there.
fn files(folder: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let sql = entries.filter(|path| path.extension().is_some_and(|ending| ending == "sql"));
    let named = sql.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path));
    named.map(|(name, path)| (name, std::fs::read_to_string(path).unwrap())).collect()
}

async fn prepare(database: &Database, name: &str, sql: &str) {
    assert!(!sql.replace("'{}'", "").contains('{'), "{name}: a name is left open\n{sql}");
    let sql = sql.trim_end().trim_end_matches(';');
    database.run(&format!("PREPARE \"{name}\" AS {sql}; DEALLOCATE \"{name}\"")).await;
}

async fn prepare_all(stage: &Stage) {
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    let names = Names::new(&stage.config.legacy, stage.config.relay.lanes);
    let lane = [("lane_number", "0".to_owned()), ("lane_numbers", "ARRAY[0]::int[]".to_owned())];
    for (name, file) in files("source") {
        if !SCRIPTS.contains(&name.as_str()) {
            prepare(legacy, &name, &render(&names.render(&file), &lane)).await;
        }
    }
    let target_names = target::names(&stage.config.new.schema, Uuid::nil());
    for (name, file) in files("target") {
        if !SCRIPTS.contains(&name.as_str()) {
            let file = with_operators(&file);
            prepare(new, &name, &render(&render(&file, &target_names), &lane)).await;
        }
    }
    let of_query = [("key", "relay_row.id".to_owned()), ("rows", "(SELECT 1 AS id)".to_owned())];
    for (name, file) in files("plan") {
        let sql = render(&with_operators(&file), &of_query);
        prepare(legacy, &name, &sql).await;
        prepare(new, &name, &sql).await;
    }
    // These are put together from more than names; the list must have every file.
    let sent: BTreeMap<_, _> = operator::statements(&names).into_iter().collect();
    let known: BTreeSet<&str> = sent.keys().copied().collect();
    let there = files("operator");
    assert_eq!(known, there.keys().map(String::as_str).collect(), "operator::statements, and sql/operator");
    for (name, sql) in sent {
        prepare(legacy, name, &sql).await;
    }
}

#[tokio::test]
async fn every_statement_is_understood_by_the_schema_that_init_creates() {
    prepare_all(&Stage::new().await).await;
}

#[tokio::test]
async fn every_statement_is_understood_whatever_things_are_called() {
    let renamed = |config: &mut Config| {
        config.legacy.schema = "the relay's".into();
        config.legacy.outbox = TableName { schema: "public".into(), table: "Out \"box\"".into() };
        config.new.schema = "The Relay".into();
        let word = |word: &str| format!("it's {word}");
        config.legacy.status = StatusWords {
            pending: word("new"),
            retry: word("again"),
            held: word("behind"),
            processed: word("done"),
            failed: word("dead"),
            skipped: word("passed"),
        };
        // Words of SQL, and the words that the statements themselves use for other things.
        config.legacy.columns = Columns {
            id: "order".into(),
            event_id: "select".into(),
            aggregate_type: "lane".into(),
            aggregate_id: "token".into(),
            event_type: "hash".into(),
            payload: "Pay Load".into(),
            headers: "user".into(),
            created_at: "at".into(),
            status: "state".into(),
            attempts: "n".into(),
            next_attempt_at: "due".into(),
            processed_at: "ids".into(),
            last_error: "cause".into(),
        };
    };
    prepare_all(&Stage::with(renamed).await).await;
}

#[tokio::test]
async fn every_statement_is_understood_by_an_adopted_table() {
    let debeziums = pair().await;
    debeziums.legacy.run(DEBEZIUM).await;
    prepare_all(&Stage::on(debeziums, debezium).await).await;
    let enums = pair().await;
    enums.legacy.run(ENUM).await;
    prepare_all(&Stage::on(enums, words_of_enum).await).await;
}
