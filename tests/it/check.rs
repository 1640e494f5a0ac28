//! check: what is wrong is found before it fails, with its remedy, and nothing is changed.

use outbox_relay::check::{self, Finding, Severity};
use outbox_relay::config::{Config, TableName};

use crate::support::stage::{Stage, file};

async fn codes(stage: &Stage) -> Vec<String> {
    check::check(&stage.config).await.into_iter().map(|finding| finding.code).collect()
}

async fn finding(stage: &Stage, code: &str) -> Finding {
    let findings = check::check(&stage.config).await;
    findings
        .iter()
        .find(|f| f.code == code)
        .cloned()
        .unwrap_or_else(|| panic!("no {code}:\n{}", check::render(&findings)))
}

#[tokio::test]
async fn a_sound_installation_has_no_findings() {
    let stage = Stage::new().await;
    let findings = check::check(&stage.config).await;
    assert_eq!(findings, vec![], "{}", check::render(&findings));
    assert_eq!(check::render(&findings), "No problems.\n");
}

#[tokio::test]
async fn databases_that_are_away_or_bare_are_told() {
    let pair = crate::support::pair().await;
    let config = Config::for_databases(&pair.legacy.url, "postgres://nobody@127.0.0.1:1/none").unwrap();
    let findings = check::check(&config).await;
    let codes: Vec<&str> = findings.iter().map(|f| f.code.as_str()).collect();
    assert_eq!(codes, ["new.unreachable", "outbox.missing"]);
    assert!(check::any_problem(&findings));
}

#[tokio::test]
async fn mappings_are_checked_against_both_schemas() {
    let mut stage = Stage::new().await;
    stage.config.entities[0].mapping = Some(file("mappings/user.sql", "SELECT payloud->>'id' AS id FROM event"));
    let found = finding(&stage, "mapping.column").await;
    assert!(
        found.what.contains("mappings/user.sql:1:8") && found.what.contains("did you mean \"payload\"?"),
        "{}",
        found.what
    );
    stage.config.entities[0].mapping =
        Some(file("mappings/user.sql", "SELECT payload->>'id' AS id, Random()::text AS name, 1 AS version FROM event"));
    assert!(finding(&stage, "mapping.volatile").await.what.contains("random"));
    stage.config.entities[0].mapping = None;
    stage.config.entities[0].table = Some(TableName { schema: "public".into(), table: "usrs".into() });
    finding(&stage, "mapping.table").await;
    stage.config.entities[0].table = Some(TableName { schema: "public".into(), table: "users".into() });
    stage.config.entities[0].key = vec!["name".into()];
    assert_eq!(
        finding(&stage, "mapping.key").await.remedy,
        "CREATE UNIQUE INDEX CONCURRENTLY ON \"public\".\"users\" (\"name\");"
    );
}

#[tokio::test]
async fn what_is_wrong_with_the_outbox_is_found() {
    let stage = Stage::new().await;
    let legacy = &stage.pair.legacy;
    stage.event("User", "1", "UserRenamed", "{}").await;
    stage.event("Invoice", "1", "Sent", r#""{\"id\": 1}""#).await;
    legacy
        .run("ALTER TABLE outbox DROP CONSTRAINT outbox_status_check; UPDATE outbox SET status = 'odd' WHERE id = 1")
        .await;
    stage.event("User", "2", "UserRenamed", "{}").await;
    legacy.run("ALTER SEQUENCE outbox_id_seq CACHE 10; DROP INDEX outbox_relay_due; UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'outbox_relay_blocked'::regclass").await;
    legacy.run("CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM public.outbox WHERE status = 'processed'; RETURN NULL; END $$; CREATE TABLE other (n int); CREATE TRIGGER tidy AFTER INSERT ON other EXECUTE FUNCTION tidy()").await;
    let before: String = legacy.value("SELECT string_agg(o::text, '|') FROM outbox o").await;
    let codes = codes(&stage).await;
    for code in [
        "outbox.status",
        "outbox.unmapped",
        "outbox.serialised_twice",
        "outbox.sequence_cache",
        "index.missing",
        "index.invalid",
        "outbox.cleaner",
    ] {
        assert!(codes.iter().any(|c| c == code), "{code} in {codes:?}");
    }
    assert_eq!(codes.iter().filter(|c| *c == "outbox.unmapped").count(), 2, "an aggregate type and an event type");
    assert_eq!(finding(&stage, "outbox.sequence_cache").await.remedy, "ALTER SEQUENCE outbox_id_seq CACHE 1;");
    assert!(finding(&stage, "outbox.status").await.what.contains("1 events have the status \"odd\""));
    assert_eq!(legacy.value::<String>("SELECT string_agg(o::text, '|') FROM outbox o").await, before);
}

#[tokio::test]
async fn a_missing_grant_is_found_before_it_fails() {
    let mut stage = Stage::new().await;
    let role = format!("bare_{}", uuid::Uuid::new_v4().simple());
    for db in [&stage.pair.legacy, &stage.pair.new] {
        db.run(&format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA outbox_relay TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA outbox_relay TO {role}")).await;
    }
    let url = |url: &str| format!("postgres://{role}@{}", url.split_once('@').unwrap().1);
    let config = Config::for_databases(&url(&stage.pair.legacy.url), &url(&stage.pair.new.url)).unwrap();
    stage.config.legacy.url = config.legacy.url;
    stage.config.new.url = config.new.url;
    let found = finding(&stage, "rights.legacy").await;
    assert_eq!(found.severity, Severity::Problem);
    assert!(
        found.what.contains("UPDATE on the outbox's status columns")
            && found.remedy.contains("GRANT SELECT, DELETE, UPDATE"),
        "{found:?}"
    );
    finding(&stage, "rights.new").await;
    let table = finding(&stage, "rights.table").await;
    assert_eq!(table.remedy, format!("GRANT SELECT, INSERT, UPDATE, DELETE ON \"public\".\"users\" TO \"{role}\";"));
    // The remedies are exact.
    for (db, remedy) in [(&stage.pair.legacy, &found.remedy), (&stage.pair.new, &table.remedy)] {
        db.run(remedy).await;
    }
    assert!(!codes(&stage).await.iter().any(|c| c == "rights.legacy" || c == "rights.table"));
}
