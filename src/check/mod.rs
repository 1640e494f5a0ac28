//! `check`: reads everything, changes nothing, and says what is wrong before it fails.
//!
//! Guarantees: every statement runs in a read-only transaction with a time limit; a question that takes too long is a note, not a
//! burden. A check that finds nothing proves nothing about events to come.

mod legacy;
mod source;
mod target;

use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::config::{Config, DatabaseUrl};
use crate::connect;
use crate::disposition::told;
use crate::event::Identity;
use crate::init::Side;
use crate::session::{Limits, Session};
use crate::tls::{self, Exposed};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Events stop, are lost or are refused.
    Problem,
    /// It works, and may surprise.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable: all are listed in the operations guide.
    pub code: String,
    /// What was found.
    pub what: String,
    /// What it leads to.
    pub why: String,
    /// The exact command or statement that mends it; empty where the finding says it all.
    pub remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { severity, code: code.to_owned(), what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    fn problem(code: &str, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::new(Severity::Problem, code, what, why, remedy)
    }

    fn warning(code: &str, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, code, what, why, remedy)
    }

    fn note(code: &str, what: impl Into<String>, why: impl Into<String>) -> Finding {
        Finding::new(Severity::Note, code, what, why, "")
    }
}

/// Whether any finding is a problem: the exit code is 1 then.
pub fn any_problem(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Problem)
}

/// Checks both databases, the worst first.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let source = reach(Side::Legacy, config, &mut findings).await;
    let target = reach(Side::New, config, &mut findings).await;
    if let Some(source) = &source {
        collect(Side::Legacy, source::check(config, source).await, &mut findings);
        collect(Side::Legacy, legacy::check(config, source).await, &mut findings);
    }
    if let Some(target) = &target {
        collect(Side::New, target::check(config, target).await, &mut findings);
    }
    if let (Some(source), Some(target)) = (&source, &target) {
        collect(Side::Legacy, pair(config, source, target).await, &mut findings);
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Why `run` would not start its admin API with these settings, whatever the databases are like. `certificate`: whether its
/// certificate and key can be used, which the API itself tells.
pub fn admin(config: &Config, certificate: Result<(), String>) -> Vec<Finding> {
    let found = [("admin.listen", config.admin.refusal()), ("admin.certificate", certificate.err())];
    let told = |(code, what): (&str, Option<String>)| {
        what.map(|what| Finding::problem(code, what, "run refuses to start", ""))
    };
    found.into_iter().filter_map(told).collect()
}

fn collect(side: Side, found: sqlx::Result<Vec<Finding>>, findings: &mut Vec<Finding>) {
    match found {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::problem(
            "check.failed",
            format!("{side}: {}", told(&error)),
            "what comes after this question was not checked",
            "outbox-relay check, once that is mended",
        )),
    }
}

/// For text on a terminal.
pub fn render(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Problem => "problem",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        // A mapping's error is told in its own form, with its place.
        if finding.what.starts_with("error[") {
            out.push_str(&finding.what);
        } else {
            out.push_str(&format!("{severity}[{}]: {}", finding.code, indented(&finding.what)));
        }
        if !finding.why.is_empty() {
            out.push_str(&format!("\n  why:  {}", indented(&finding.why)));
        }
        if !finding.remedy.is_empty() {
            out.push_str(&format!("\n  then: {}", indented(&finding.remedy)));
        }
        out.push_str("\n\n");
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
    let several = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    out.push_str(&match (problems, warnings) {
        (0, 0) => "No problems.\n".to_owned(),
        (0, n) => format!("No problems, {}.\n", several(n, "warning")),
        (n, m) => format!("{}, {}.\n", several(n, "problem"), several(m, "warning")),
    });
    out
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n        ")
}

/// What the answers of a side's statements may take.
const LIMITS: Limits = Limits { deadline: Duration::from_secs(10), lock: Duration::from_secs(1) };

/// A read-only transaction, so that a check changes nothing, and works behind a pooler in transaction mode.
async fn reading(pool: &PgPool) -> sqlx::Result<Session> {
    let script = format!("SET TRANSACTION READ ONLY; {}", LIMITS.sql());
    Session::begin(pool, &script).await.map(|(session, _)| session)
}

async fn reach(side: Side, config: &Config, findings: &mut Vec<Finding>) -> Option<PgPool> {
    let (url, prepared) = match side {
        Side::Legacy => (&config.legacy.url, config.legacy.prepared_statements),
        Side::New => (&config.new.url, config.new.prepared_statements),
    };
    let reached = async {
        // Never prepared by name, so that what a pooler breaks is told rather than met.
        let pool = connect::pool(url, false, 3)?;
        connect::reach(&pool).await?;
        let mut session = reading(&pool).await?;
        server(side, &mut session, findings).await?;
        if let Some(exposed) = tls::exposed(&pool.connect_options()) {
            findings.push(exposure(side, url, &exposed, encryption(&mut session).await?));
        }
        session.rollback().await;
        if prepared && is_pooled(&pool).await? {
            findings.push(Finding::warning(
                "pooler.prepared_statements",
                format!("there is a pooler between the relay and the {side} database, and prepared_statements is true"),
                "a pooler in transaction mode loses named statements, unless it is PgBouncer 1.21 or later with max_prepared_statements",
                format!("[{side}]\nprepared_statements = false"),
            ));
        }
        Ok::<_, sqlx::Error>(pool)
    };
    match reached.await {
        Ok(pool) => Some(pool),
        Err(error) => {
            if let Some(refusal) = tls::refusal(&error) {
                let what = format!("the {side} database: {}", refusal.what);
                findings.push(Finding::problem(refusal.code, what, "the relay does not connect to it", refusal.remedy));
                return None;
            }
            findings.push(Finding::problem(
                &format!("{side}.unreachable"),
                format!("the {side} database cannot be used: {}", told(&error)),
                "nothing else could be checked there",
                format!("psql \"{url}\" -c 'SELECT 1'"),
            ));
            None
        }
    }
}

async fn server(side: Side, session: &mut Session, findings: &mut Vec<Finding>) -> sqlx::Result<()> {
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(), \
               current_setting('default_transaction_read_only') = 'on', extract(epoch FROM clock_timestamp())::float8, \
               has_function_privilege('pg_control_system()', 'EXECUTE')";
    let (number, version, replica, read_only, clock, may_identify): (i32, String, bool, bool, f64, bool) =
        sqlx::query_as(sql).persistent(false).fetch_one(session.connection()).await?;
    if number < 140_000 {
        findings.push(Finding::problem(
            "server.version",
            format!("the {side} server is Postgres {version}"),
            "the relay needs Postgres 14 or later",
            "upgrade the server",
        ));
    }
    if replica {
        findings.push(Finding::problem(
            "server.replica",
            format!("the {side} server is a replica"),
            "the relay writes on both sides",
            format!("[{side}] url: name the primary, or several hosts with target_session_attrs=read-write"),
        ));
    } else if read_only {
        findings.push(Finding::problem(
            "server.read_only",
            format!("transactions on the {side} database are read-only by default"),
            "the relay writes on both sides",
            "ALTER ROLE … SET default_transaction_read_only = off;",
        ));
    }
    if !may_identify {
        findings.push(Finding::problem(
            "rights.identity",
            format!("the relay's role may not call pg_control_system() on the {side} server"),
            "by the system identifier the relay tells a database from its clone",
            "GRANT EXECUTE ON FUNCTION pg_control_system() TO CURRENT_USER;",
        ));
    }
    let here = chrono::Utc::now().timestamp_micros() as f64 / 1e6;
    if (here - clock).abs() > 5.0 {
        findings.push(Finding::warning(
            "server.clock",
            format!("the clock of the {side} server differs from this machine's by {:.0} s", clock - here),
            "times in logs and pages do not fit together; order and retries do not depend on it",
            "run a time service (chrony, systemd-timesyncd) on both",
        ));
    }
    Ok(())
}

/// The version of TLS that the server speaks on this connection (with a pooler between: the pooler's).
async fn encryption(session: &mut Session) -> sqlx::Result<Option<String>> {
    let sql = "SELECT coalesce(version, 'TLS') FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
    sqlx::query_scalar(sql).persistent(false).fetch_optional(session.connection()).await
}

/// What whoever stands between could do.
fn exposure(side: Side, url: &DatabaseUrl, exposed: &Exposed, encryption: Option<String>) -> Finding {
    let Exposed { host, mode, authority } = exposed;
    let what = match encryption {
        None => format!("the connection to the {side} database at {host} is not encrypted (sslmode={mode})"),
        Some(version) => {
            let proved = if *authority {
                "any certificate of a trusted authority passes, whatever host it names"
            } else {
                "nothing proves that it is that server"
            };
            format!(
                "the connection to the {side} database at {host} is encrypted ({version}), but with sslmode={mode} {proved}"
            )
        }
    };
    Finding::warning(
        "tls.unverified",
        what,
        "whoever stands between can read and change what passes, and can get the relay's password",
        format!("[{side}]\nurl = \"{}\"", url.verified()),
    )
}

/// Whether two connections that are both open were given the same server process: then somebody stands in between. A pooler
/// that happens to give two is not seen.
async fn is_pooled(pool: &PgPool) -> sqlx::Result<bool> {
    let (mut one, mut other) = (pool.acquire().await?, pool.acquire().await?);
    let mut pids: Vec<i32> = Vec::new();
    for connection in [&mut one, &mut other] {
        use sqlx::{Executor, Row};
        let row = connection.fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()")).await?;
        pids.push(row.try_get(0)?);
    }
    Ok(pids[0] == pids[1])
}

/// What only both together tell.
async fn pair(config: &Config, source: &PgPool, target: &PgPool) -> sqlx::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    match connect::installation(source, config).await {
        Ok(installation) => {
            if let Err(error) = connect::check_target(target, config, &installation).await {
                findings.push(not_ready(&error.to_string()));
            } else {
                findings.extend(peers(config, source, target, &installation).await?);
            }
        }
        Err(error) => findings.push(not_ready(&error.to_string())),
    }
    Ok(findings)
}

fn not_ready(what: &str) -> Finding {
    Finding::problem("installation", what, "run refuses to start", "outbox-relay init --print, then outbox-relay init")
}

/// Whether each side's newest log entries name the other.
async fn peers(
    config: &Config,
    source: &PgPool,
    target: &PgPool,
    installation: &connect::Installation,
) -> sqlx::Result<Vec<Finding>> {
    let identity = Identity::SQL;
    let names = crate::source::Names::new(&config.legacy, config.relay.lanes);
    let newest = "SELECT DISTINCT ON (lane) lane, token, nonce, peer";
    let on_source = names.render(&format!(
        "SELECT {identity}, peer FROM ({newest} FROM {{relay}}.batch_log ORDER BY lane, token DESC) n"
    ));
    let of_target = crate::target::names(&config.new.schema, installation.source_id);
    let on_target = crate::sql::render(
        &format!(
            "SELECT {identity}, peer FROM ({newest} FROM {{relay}}.batch_log WHERE source_id = {{source}} ORDER BY lane, token DESC) n"
        ),
        &of_target,
    );
    let ask = async |pool: &PgPool, sql: &str| -> sqlx::Result<Vec<(String, String)>> {
        let mut session = reading(pool).await?;
        let rows = sqlx::query_as(crate::sql::trusted(sql)).persistent(false).fetch_all(session.connection()).await;
        session.rollback().await;
        rows
    };
    let (on_source, on_target) = (ask(source, &on_source).await?, ask(target, &on_target).await?);
    let lanes = usize::from(installation.lanes);
    let mut findings = Vec::new();
    if on_source.len() < lanes || on_target.len() < lanes {
        findings.push(not_ready("init was interrupted: not every lane's log has begun on both sides"));
        return Ok(findings);
    }
    for (side, known, found) in
        [(Side::New, &on_source[0].1, &on_target[0].0), (Side::Legacy, &on_target[0].1, &on_source[0].0)]
    {
        if known != found {
            findings.push(Finding::problem(
                "installation.moved",
                format!("the {side} database is {found}, but the log was written against {known}"),
                "a clone or a restored dump: all lanes are stopped",
                "outbox-relay init --moved    (only if the other one is gone)",
            ));
        }
    }
    Ok(findings)
}
