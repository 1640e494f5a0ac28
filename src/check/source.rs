//! The legacy database: the outbox, the relay's tables beside it, and what its role may do.

use std::collections::BTreeSet;

use sqlx::Row;
use sqlx::postgres::PgPool;

use super::{Finding, reading};
use crate::config::Config;
use crate::event::Status;
use crate::init;
use crate::session;
use crate::source::Names;
use crate::sql::{ident, literal, query};

pub(super) async fn check(config: &Config, pool: &PgPool) -> sqlx::Result<Vec<Finding>> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let check = Check { config, names, pool };
    let mut session = reading(pool).await?;
    let columns = init::outbox_columns(&check.names, &mut session).await;
    session.rollback().await;
    let columns = columns?;
    if columns.0.is_empty() {
        return Ok(vec![Finding::problem(
            "outbox.missing",
            format!("there is no table {}", check.names.outbox),
            "events are written there",
            "outbox-relay init --print, then outbox-relay init",
        )]);
    }
    let c = &config.legacy.columns;
    let all = [
        &c.id,
        &c.event_id,
        &c.aggregate_type,
        &c.aggregate_id,
        &c.event_type,
        &c.payload,
        &c.headers,
        &c.created_at,
        &c.status,
        &c.attempts,
        &c.next_attempt_at,
        &c.processed_at,
        &c.last_error,
    ];
    let missing: Vec<&str> = all.iter().filter(|name| columns.get(name).is_none()).map(|name| name.as_str()).collect();
    if !missing.is_empty() {
        return Ok(vec![Finding::problem(
            "outbox.columns",
            format!("{} has no column {}", check.names.outbox, missing.join(", ")),
            "the relay reads and writes them",
            "outbox-relay init --print, then outbox-relay init    (or name them in [legacy.columns])",
        )]);
    }
    let mut findings = Vec::new();
    findings.extend(check.rights().await?);
    findings.extend(check.indexes().await?);
    findings.extend(check.sequence().await?);
    findings.extend(check.cleaners().await?);
    findings.extend(check.partitions().await?);
    if columns.get(&c.created_at).is_some_and(|column| column.base == "timestamp without time zone") {
        let what = format!("{} has no time zone", c.created_at);
        findings.push(Finding::note(
            "outbox.created_at",
            what,
            "the relay reads it as UTC: lag_seconds is off by the writer's offset",
        ));
    }
    findings.extend(check.encoding().await?);
    // What reads many rows comes last, and may take too long.
    for found in [check.unclaimed().await, check.without_aggregate().await, check.unmapped().await, check.twice().await]
    {
        match found {
            Ok(found) => findings.extend(found),
            Err(error) if session::is_statement_timeout(&error) => {
                findings.push(Finding::note(
                    "outbox.large",
                    "a count of the outbox's rows took more than ten seconds",
                    "and was given up",
                ));
            }
            Err(error) if session::sqlstate(&error).as_deref() == Some("42501") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(findings)
}

/// How to be rid of a partition that was seen empty. A transaction that was open then may still commit an event into it: detaching
/// waits for that one, and only what is empty afterwards is dropped.
fn dropping(outbox: &str, partition: &str, bound: &str, more: &str) -> String {
    let message = literal(&format!(
        "{partition} holds events that were committed meanwhile: attach it again, and they are relayed"
    ));
    let hint = literal(&format!("ALTER TABLE {outbox} ATTACH PARTITION {partition} {bound};"));
    format!(
        "ALTER TABLE {outbox} DETACH PARTITION {partition} CONCURRENTLY;    (each outside a transaction{more})\n\
         DO $drop$ BEGIN LOCK TABLE {partition}; IF EXISTS (SELECT FROM {partition}) THEN RAISE EXCEPTION USING MESSAGE = {message}, \
         HINT = {hint}; END IF; DROP TABLE {partition}; END $drop$;"
    )
}

struct Check<'a> {
    config: &'a Config,
    names: Names,
    pool: &'a PgPool,
}

impl Check<'_> {
    async fn rows(&self, sql: &str) -> sqlx::Result<Vec<sqlx::postgres::PgRow>> {
        let mut session = reading(self.pool).await?;
        let rows = query(&self.names.render(sql), false).fetch_all(session.connection()).await;
        session.rollback().await;
        rows
    }

    async fn rights(&self) -> sqlx::Result<Vec<Finding>> {
        let roles = init::Roles { app: "app".to_owned(), relay: "relay".to_owned() };
        let c = &self.config.legacy.columns;
        let mut wanted = vec![
            (
                format!("has_schema_privilege({}, 'USAGE')", literal(&self.config.legacy.outbox.schema)),
                "USAGE on the outbox's schema",
            ),
            ("has_table_privilege({outbox_oid}, 'SELECT')".to_owned(), "SELECT on the outbox"),
            ("has_table_privilege({outbox_oid}, 'DELETE')".to_owned(), "DELETE on the outbox (retention)"),
        ];
        for column in [&c.status, &c.attempts, &c.next_attempt_at, &c.processed_at, &c.last_error] {
            wanted.push((
                format!("has_column_privilege({{outbox_oid}}, {}, 'UPDATE')", literal(column)),
                "UPDATE on the outbox's status columns",
            ));
        }
        let own = "(SELECT coalesce(bool_and(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') \
                   AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')), true) \
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = {schema} AND c.relkind = 'r' AND c.relname = ANY ({tables}))";
        let tables = init::grants::tables_of_source();
        let tables = format!("ARRAY[{}]", tables.iter().map(|t| literal(t)).collect::<Vec<_>>().join(", "));
        let schema = literal(&self.config.legacy.schema);
        wanted.push((
            crate::sql::render(own, &[("schema", schema.clone()), ("tables", tables)]),
            "SELECT, INSERT, UPDATE and DELETE on the relay's own tables",
        ));
        wanted.push((
            format!("(SELECT coalesce(bool_and(has_sequence_privilege(c.oid, 'USAGE')), true) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {schema} AND c.relname = 'token')"),
            "USAGE on the relay's sequence of tokens",
        ));
        let select = wanted.iter().map(|(sql, _)| sql.as_str()).collect::<Vec<_>>().join(", ");
        let rows = self.rows(&format!("SELECT current_user::text, {select}")).await?;
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let user: String = row.try_get(0)?;
        let mut lacking = BTreeSet::new();
        for (at, (_, what)) in wanted.iter().enumerate() {
            if !row.try_get::<Option<bool>, _>(at + 1)?.unwrap_or(false) {
                lacking.insert(*what);
            }
        }
        if lacking.is_empty() {
            return Ok(Vec::new());
        }
        let grants = init::grants(self.config, self.pool, &init::Roles { relay: user.clone(), ..roles }).await;
        let remedy = grants.map(|g| {
            g.source
                .into_iter()
                .filter(|sql| sql.ends_with(&format!("TO {};", ident(&user))))
                .collect::<Vec<_>>()
                .join("\n")
        });
        Ok(vec![Finding::problem(
            "rights.legacy",
            format!("the role {user} lacks {}", lacking.into_iter().collect::<Vec<_>>().join(", ")),
            "the relay fails as soon as it needs it",
            remedy.unwrap_or_else(|_| "outbox-relay init --print shows the grants".to_owned()),
        )])
    }

    async fn indexes(&self) -> sqlx::Result<Vec<Finding>> {
        let rows = self
            .rows("SELECT x.relname::text AS name, i.indisvalid AS valid FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = {outbox_oid}")
            .await?;
        let mut there = Vec::new();
        for row in &rows {
            there.push((row.try_get::<String, _>("name")?, row.try_get::<bool, _>("valid")?));
        }
        let mut findings = Vec::new();
        for index in init::relay_indexes(self.config) {
            let (code, what) = match there.iter().find(|(name, _)| *name == index.name) {
                Some((_, true)) => continue,
                Some((_, false)) => {
                    ("index.invalid", format!("the index {} is invalid: making it was interrupted", index.name))
                }
                None => ("index.missing", format!("there is no index {}", index.name)),
            };
            findings.push(Finding::problem(
                code,
                what,
                format!("each look reads the whole outbox ({})", index.why),
                "outbox-relay init",
            ));
        }
        Ok(findings)
    }

    async fn sequence(&self) -> sqlx::Result<Vec<Finding>> {
        let sql = format!(
            "SELECT s::regclass::text AS name, q.seqcache, has_sequence_privilege(s::regclass, 'SELECT') AS may \
             FROM pg_get_serial_sequence({}, {}) AS s JOIN pg_sequence q ON q.seqrelid = s::regclass",
            literal(&self.names.outbox),
            literal(&self.config.legacy.columns.id)
        );
        let why = "the relay cannot tell below which id all is decided, and scans from the oldest pending event each time: right, \
                   but slower while a long transaction holds back vacuum";
        let rows = self.rows(&sql).await?;
        let Some(row) = rows.first() else {
            let what = format!("{}.{} has no sequence of its own", self.names.outbox, self.config.legacy.columns.id);
            return Ok(vec![Finding::note("outbox.sequence", what, why)]);
        };
        let (name, cache, may): (String, i64, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let mut findings = Vec::new();
        if cache > 1 {
            findings.push(Finding::warning(
                "outbox.sequence_cache",
                format!("the sequence {name} hands out {cache} ids ahead to each session"),
                format!("ids are not in the order of the inserts of different sessions, and {why}"),
                format!("ALTER SEQUENCE {name} CACHE 1;"),
            ));
        }
        if !may {
            findings.push(Finding::problem(
                "rights.sequence",
                format!("the relay's role may not read the sequence {name}"),
                "it reads how far ids were handed out",
                format!("GRANT SELECT ON SEQUENCE {name} TO CURRENT_USER;"),
            ));
        }
        Ok(findings)
    }

    /// Whoever else deletes from the outbox, as far as can be seen.
    async fn cleaners(&self) -> sqlx::Result<Vec<Finding>> {
        let table = &self.config.legacy.outbox.table;
        let delete = literal(&format!(
            r#"delete\s+from\s+(only\s+)?("?\w+"?\.)?"?{}"?\M"#,
            table.replace(|c: char| !c.is_alphanumeric() && c != '_', ".")
        ));
        let mut found = Vec::new();
        let triggers = format!(
            "SELECT t.tgname || ' on ' || t.tgrelid::regclass::text AS name FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid \
             WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND p.prosrc ~* {delete}"
        );
        for row in self.rows(&triggers).await? {
            found.push(format!("the trigger {}", row.try_get::<String, _>(0)?));
        }
        let rows = self.rows("SELECT to_regclass('cron.job') IS NOT NULL AND has_schema_privilege('cron', 'USAGE') AND has_table_privilege('cron.job', 'SELECT')").await;
        let has_cron = rows.ok().and_then(|rows| rows.first()?.try_get::<bool, _>(0).ok()).unwrap_or(false);
        if has_cron {
            for row in self.rows(&format!("SELECT command::text FROM cron.job WHERE command ~* {delete}")).await? {
                found.push(format!("pg_cron's job \"{}\"", row.try_get::<String, _>(0)?));
            }
        }
        Ok(found
            .into_iter()
            .map(|who| {
                Finding::warning(
                    "outbox.cleaner",
                    format!("{who} deletes from the outbox"),
                    "an event deleted behind the relay's back cannot be applied again after a failover: the lane stops",
                    "leave deleting to [retention]; remove it",
                )
            })
            .collect())
    }

    /// Of an outbox that is partitioned by time: whether tomorrow has a place, and what may go.
    async fn partitions(&self) -> sqlx::Result<Vec<Finding>> {
        if !crate::connect::is_partitioned(self.pool, self.config, &self.names).await? {
            return Ok(Vec::new());
        }
        let outbox = &self.names.outbox;
        let mut session = reading(self.pool).await?;
        let sql = include_str!("../../sql/source/partition_times.sql");
        let rows = query(sql, false).bind(outbox).fetch_all(session.connection()).await;
        session.rollback().await;
        let (mut findings, mut tomorrow, mut over) = (Vec::new(), false, Vec::new());
        for row in rows? {
            tomorrow |= row.try_get::<bool, _>("takes_tomorrow")?;
            if row.try_get::<Option<bool>, _>("over")?.unwrap_or(false) {
                over.push((row.try_get::<String, _>("name")?, row.try_get::<String, _>("bound")?));
            }
        }
        if !tomorrow {
            let day = chrono::Utc::now().date_naive() + chrono::Days::new(1);
            let next = day + chrono::Days::new(1);
            let table = ident(&format!("{}_{}", self.config.legacy.outbox.table, day.format("%Y%m%d")));
            let schema = ident(&self.config.legacy.outbox.schema);
            findings.push(Finding::problem(
                "outbox.partition_missing",
                format!("no partition of {outbox} takes events of tomorrow"),
                "each INSERT of the application fails then (no partition of relation found for row)",
                format!(
                    "CREATE TABLE {schema}.{table} PARTITION OF {outbox} FOR VALUES FROM ('{day} 00:00Z') TO ('{next} 00:00Z');"
                ),
            ));
        }
        let mut empty = Vec::new();
        // Oldest first; the others another time.
        for (name, bound) in over.iter().take(100) {
            let rows = self.rows(&format!("SELECT EXISTS (SELECT FROM {name}) AS holds")).await?;
            if rows.first().is_some_and(|row| row.try_get::<bool, _>("holds").unwrap_or(true)) {
                continue;
            }
            empty.push((name.as_str(), bound.as_str()));
        }
        if let Some((first, bound)) = empty.first() {
            let more = if empty.len() > 1 { format!(", and {} more", empty.len() - 1) } else { String::new() };
            findings.push(Finding {
                remedy: dropping(outbox, first, bound, &more),
                ..Finding::note(
                    "outbox.partition_empty",
                    format!("{first}{more}: retention has deleted all events of this time"),
                    "each look at the outbox passes over every partition",
                )
            });
        }
        Ok(findings)
    }

    async fn unclaimed(&self) -> sqlx::Result<Vec<Finding>> {
        let words = Status::ALL.map(|status| literal(self.names.word(status))).join(", ");
        let sql = format!(
            "SELECT {{status}}::text AS word, count(*) AS n FROM {{outbox}} WHERE {{status}}::text NOT IN ({words}) OR {{status}} IS NULL GROUP BY 1 ORDER BY 2 DESC LIMIT 10"
        );
        let rows = self.rows(&sql).await?;
        rows.iter()
            .map(|row| {
                let word: Option<String> = row.try_get("word")?;
                let n: i64 = row.try_get("n")?;
                let word = word.map_or("no status".to_owned(), |word| format!("the status \"{word}\""));
                Ok(Finding::problem(
                    "outbox.status",
                    format!("{n} events have {word}, which nobody claims"),
                    "they are never applied",
                    format!(
                        "name the word in [legacy.status], or: UPDATE {} SET {} = …",
                        self.names.outbox,
                        ident(&self.config.legacy.columns.status)
                    ),
                ))
            })
            .collect()
    }

    async fn without_aggregate(&self) -> sqlx::Result<Vec<Finding>> {
        let sql = "SELECT count(*) AS n, min({id})::bigint AS first FROM {outbox} WHERE ({aggregate_type} IS NULL OR {aggregate_id} IS NULL) AND {status} = {pending}";
        let rows = self.rows(sql).await?;
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let n: i64 = row.try_get("n")?;
        if n == 0 {
            return Ok(Vec::new());
        }
        let first: i64 = row.try_get("first")?;
        let c = &self.config.legacy.columns;
        Ok(vec![Finding::problem(
            "outbox.aggregate",
            format!(
                "{n} pending events have no {} or no {}; the first has {} {first}",
                c.aggregate_type, c.aggregate_id, c.id
            ),
            "an event without an aggregate belongs to no lane, and is never applied",
            format!(
                "ALTER TABLE {} ALTER COLUMN {} SET NOT NULL, once they are mended",
                self.names.outbox,
                ident(&c.aggregate_id)
            ),
        )])
    }

    async fn unmapped(&self) -> sqlx::Result<Vec<Finding>> {
        let sql = "SELECT kind, event, count(*) AS n, count(*) OVER () AS kinds FROM \
                   (SELECT {aggregate_type}::text AS kind, {event_type}::text AS event FROM {outbox} \
                    WHERE {status} = {pending} LIMIT 100000) p WHERE kind IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 1000";
        let mut findings = Vec::new();
        for row in self.rows(sql).await? {
            let kind: String = row.try_get("kind")?;
            let event: String = row.try_get::<Option<String>, _>("event")?.unwrap_or_default();
            let n: i64 = row.try_get("n")?;
            let entities = || self.config.entities.iter().filter(|e| e.aggregate_type == kind);
            let (what, remedy) = if entities().next().is_none() {
                (
                    format!("no entity takes the aggregate type \"{kind}\""),
                    format!(
                        "[[entity]]\naggregate_type = \"{kind}\"\nname = \"…\"\n[entity.events]\n{event} = \"ignore\""
                    ),
                )
            } else if entities().any(|e| e.events.contains_key(&event)) {
                continue;
            } else {
                (
                    format!("no entity of the aggregate type \"{kind}\" names the event type \"{event}\""),
                    format!("[entity.events]\n{event} = \"ignore\"    # or \"upsert\", \"delete\", {{ sql = … }}"),
                )
            };
            findings.push(Finding::problem(
                "outbox.unmapped",
                format!("{what}; {n} events wait (of the first 100,000 pending)"),
                "they wait, and hold back later ones of their aggregates",
                remedy,
            ));
        }
        Ok(findings)
    }

    async fn encoding(&self) -> sqlx::Result<Vec<Finding>> {
        let rows = self.rows("SELECT pg_catalog.current_setting('server_encoding')").await?;
        let encoding: Option<String> = rows.first().map(|row| row.try_get(0)).transpose()?;
        if encoding.as_deref() != Some("SQL_ASCII") {
            return Ok(Vec::new());
        }
        Ok(vec![Finding::warning(
            "outbox.encoding",
            "the legacy database's encoding is SQL_ASCII: it keeps whatever bytes it is given".to_owned(),
            "an event whose bytes are no UTF-8 can be read by nobody (22021), and its lane waits until it is mended",
            "have all writers set client_encoding to UTF8 and write UTF-8; docs/operations.md, \"Bytes that are no UTF-8\", finds and mends the others",
        )])
    }

    async fn twice(&self) -> sqlx::Result<Vec<Finding>> {
        let sql = "SELECT count(*) AS sample, count(*) FILTER (WHERE left(ltrim(payload), 1) = '\"') AS strings FROM \
                   (SELECT {payload}::text AS payload FROM {outbox} WHERE {status} = {pending} LIMIT 100) p";
        let rows = self.rows(sql).await?;
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let (sample, strings): (i64, i64) = (row.try_get("sample")?, row.try_get("strings")?);
        let meant = self.config.entities.iter().any(|entity| entity.string_payloads);
        if strings == 0 || meant {
            return Ok(Vec::new());
        }
        Ok(vec![Finding::problem(
            "outbox.serialised_twice",
            format!("{strings} of {sample} pending payloads are JSON strings, not objects"),
            "the application serialises them twice: payload->>'id' yields NULL, and such events are refused",
            "give the driver the object, or the text once; not JSON.stringify(JSON.stringify(…)). If it must be so: string_payloads = true \
             in the [[entity]], and (payload #>> '{}')::jsonb in its mapping",
        )])
    }
}
