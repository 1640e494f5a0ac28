//! Temporary: stands in for configuration loading, reloading and the admin server until they are plugged into `wiring`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Json;
use axum::extract::{Path as Id, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::{Value, json};
use sqlx::Row;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Action, Config, Entity, OnFailure, SqlFile, TableName};
use crate::relay::Shared;
use crate::sql::trusted;

pub(super) fn configuration(file: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(file)?;
    let toml: toml::Table = text.parse()?;
    let at = |section: &str, key: &str| toml[section][key].as_str().unwrap_or_default().to_owned();
    let mut config = Config::for_databases(&at("legacy", "url"), &at("new", "url")).map_err(anyhow::Error::msg)?;
    config.file = Some(file.to_owned());
    config.relay.lanes = 8;
    config.retry.initial = Duration::from_millis(300);
    config.retry.max = Duration::from_secs(1);
    config.retry.attempts = 3;
    config.admin.listen = at("admin", "listen").parse()?;
    config.entities = entities(file.parent().unwrap_or(file))?;
    Ok(config)
}

fn entities(folder: &Path) -> anyhow::Result<Vec<Entity>> {
    let file = |name: &str| -> anyhow::Result<SqlFile> {
        let text = std::fs::read_to_string(folder.join(name)).with_context(|| format!("cannot read {name}"))?;
        Ok(SqlFile { path: name.into(), text })
    };
    let entity = |line, kind: &str, table: &str, mapping: &str| -> anyhow::Result<Entity> {
        Ok(Entity {
            name: table.to_owned(),
            line,
            aggregate_type: kind.to_owned(),
            table: Some(TableName { schema: "public".to_owned(), table: table.to_owned() }),
            key: vec!["id".to_owned()],
            replace_by: Vec::new(),
            mapping: Some(file(mapping)?),
            on_failure: OnFailure::Hold,
            events: BTreeMap::from([
                (format!("{kind}Created"), Action::Upsert),
                (format!("{kind}Updated"), Action::Upsert),
                (format!("{kind}Deleted"), Action::Delete),
            ]),
        })
    };
    let mut customers = entity(25, "User", "customers", "mappings/customer.sql")?;
    customers.events.insert("UserCredited".to_owned(), Action::Sql(file("handlers/user_credited.sql")?));
    Ok(vec![customers, entity(37, "Order", "orders", "mappings/order.sql")?])
}

pub(super) async fn watch_files(shared: Arc<Shared>, shutdown: CancellationToken) {
    let Some(folder) = shared.config.file.as_deref().and_then(Path::parent).map(Path::to_owned) else { return };
    while !shutdown.is_cancelled() {
        if let Ok(entities) = entities(&folder)
            && format!("{:?}", shared.entities()) != format!("{entities:?}")
        {
            let _ = shared.use_entities(entities, true).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
    }
}

pub(super) async fn serve_admin(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = axum::Router::new()
        .route("/v1/events/{id}", get(show))
        .route("/v1/events/{id}/replay", post(replay))
        .with_state(shared);
    Ok(axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await?)
}

type Answer = Result<Json<Value>, (StatusCode, String)>;

fn failed(error: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn show(State(shared): State<Arc<Shared>>, Id(id): Id<i64>) -> Answer {
    let sql = "SELECT to_jsonb(o)::text FROM outbox o WHERE id = $1";
    let text: Option<String> =
        sqlx::query_scalar(sql).bind(id).fetch_optional(&shared.source.pool).await.map_err(failed)?;
    let text = text.ok_or((StatusCode::NOT_FOUND, "no such event".to_owned()))?;
    Ok(Json(serde_json::from_str(&text).map_err(failed)?))
}

async fn replay(State(shared): State<Arc<Shared>>, Id(id): Id<i64>, Json(_): Json<Value>) -> Answer {
    let names = &shared.source.names;
    let mut transaction = shared.source.pool.begin().await.map_err(failed)?;
    let lane = names.render("SELECT {lane} AS lane FROM {outbox} WHERE {id} = $1");
    let row = sqlx::query(trusted(&lane)).bind(id).fetch_one(&mut *transaction).await.map_err(failed)?;
    let lane: i32 = row.get("lane");
    for sql in [
        names.render("SELECT FROM {relay}.lane WHERE lane = $1 AND $2 > 0 FOR UPDATE"),
        names.render("UPDATE {outbox} SET {status} = {pending}, {attempts} = 0, {next_attempt_at} = NULL WHERE {lane} = $1 AND {id} = $2 AND {status} IN ({failed}, {retry}, {skipped})"),
        names.render("INSERT INTO {relay}.put_back (lane, id) VALUES ($1, $2)"),
    ] {
        sqlx::query(trusted(&sql)).bind(lane).bind(id).execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)?;
    Ok(Json(json!({"id": id, "status": "pending"})))
}
