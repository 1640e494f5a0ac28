//! The recipes of docs/mapping.md, each as the relay applies it.

use std::collections::BTreeMap;

use outbox_relay::config::{Action, Entity, OnFailure, TableName};

use crate::readme::page;
use crate::support::stage::{Stage, file};

/// A recipe: an entity, events, and the table's rows afterwards.
#[derive(Debug, Default)]
struct Recipe {
    /// `table=…` and the like.
    settings: BTreeMap<String, String>,
    sql: String,
    payloads: String,
    rows: String,
}

impl Recipe {
    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    fn entity(&self, name: &str, line: usize) -> Entity {
        let list = |of: &str| self.setting(of).map_or(vec![], |names| names.split(',').map(str::to_owned).collect());
        let sql = (!self.sql.is_empty()).then(|| file(&format!("{name}.sql"), &self.sql));
        let (action, mapping) = match self.setting("action").unwrap_or("upsert") {
            "upsert" => (Action::Upsert, sql),
            "delete" => (Action::Delete, sql),
            "sql" => (Action::Sql(sql.unwrap()), None),
            other => panic!("{other}"),
        };
        Entity {
            name: name.to_owned(),
            line,
            aggregate_type: name.to_owned(),
            table: Some(TableName { schema: "public".into(), table: self.setting("table").unwrap().to_owned() }),
            key: list("key"),
            replace_by: list("replace_by"),
            legacy: None,
            verify: Default::default(),
            mapping,
            string_payloads: false,
            on_failure: OnFailure::Hold,
            events: [("Happened".to_owned(), action)].into(),
        }
    }
}

/// All recipes by name, and the schema that they need.
fn recipes() -> (BTreeMap<String, Recipe>, String) {
    let (mut recipes, mut schema) = (BTreeMap::<String, Recipe>::new(), String::new());
    let page = page("docs/mapping.md");
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let text: String = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        let mut words = info.split_whitespace();
        let language = words.next();
        let Some(name) = words.next().and_then(|word| word.strip_prefix("test-")) else { continue };
        if name == "schema" {
            schema.push_str(&text);
            continue;
        }
        let recipe = recipes.entry(name.trim_end_matches("-rows").to_owned()).or_default();
        match language {
            Some("json") if name.ends_with("-rows") => recipe.rows = text,
            Some("json") => recipe.payloads = text,
            _ => {
                recipe.sql = text;
                recipe.settings = words
                    .map(|word| word.split_once('=').unwrap())
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .collect();
            }
        }
    }
    (recipes, schema)
}

#[tokio::test]
async fn every_recipe_of_the_cookbook_yields_what_it_says() {
    let (recipes, schema) = recipes();
    assert!(recipes.len() > 10, "{recipes:?}");
    let entities = recipes.iter().enumerate().map(|(n, (name, recipe))| recipe.entity(name, n + 1)).collect();
    let stage = Stage::with(|config| config.entities = entities).await;
    stage.pair.new.run(&schema).await;
    for (name, recipe) in &recipes {
        for payload in recipe.payloads.lines() {
            stage.event(name, "1", "Happened", payload).await;
        }
    }
    let shared = stage.shared().await;
    assert_eq!(shared.router().errors, vec![]);
    stage.drain_by_hand(&shared).await;
    let failed: Option<String> = stage
        .pair
        .legacy
        .value("SELECT string_agg(aggregate_type || ': ' || last_error, '; ') FROM outbox WHERE status <> 'processed'")
        .await;
    assert_eq!(failed, None);
    for (name, recipe) in &recipes {
        let parse = |row: &str| -> serde_json::Value { serde_json::from_str(row).unwrap() };
        let table = recipe.setting("table").unwrap();
        let found: Option<String> = stage
            .pair
            .new
            .value(&format!("SELECT string_agg(to_jsonb(t)::text, E'\\n' ORDER BY t) FROM {table} t"))
            .await;
        let found: Vec<_> = found.unwrap_or_default().lines().map(parse).collect();
        let expected: Vec<_> = recipe.rows.lines().map(parse).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[tokio::test]
async fn what_the_cookbook_says_of_missing_keys_is_so() {
    let (recipes, schema) = recipes();
    let entities = ["plain", "null"].into_iter().zip(1..).map(|(name, n)| recipes[name].entity(name, n)).collect();
    let stage = Stage::with(|config| {
        config.entities = entities;
        config.retry.attempts = 1;
    })
    .await;
    stage.pair.new.run(&schema).await;
    let plain = stage.event("plain", "1", "Happened", r#"{"id": 1, "name": "Ada"}"#).await;
    let null = stage.event("null", "1", "Happened", r#"{"id": 1}"#).await;
    let shared = stage.shared().await;
    stage.drain_by_hand(&shared).await;
    let error = async |id: i64| -> String {
        stage.pair.legacy.value(&format!("SELECT status || ' ' || last_error FROM outbox WHERE id = {id}")).await
    };
    assert_eq!(error(plain).await, "failed 22023: the payload has no key born");
    assert!(error(null).await.starts_with("failed 22012: "), "{}", error(null).await);
}
