//! From file, environment and flags to a [`Config`]. Every key and its default is declared here, once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::problem::{Code, ConfigErrors, Place, Problem};
use super::reader::{Document, Origin, Overrides, PREFIX, Reader, Setting};
use super::value::{
    ADDRESS, COLUMN, FILTER, HOST, Hook, List, NAME, Number, PAGE, PATH, PHRASE, PemFile, Size, TABLE, Time, Truth,
    Url, Word,
};
use super::{
    Admin, Alerts, Backfill, CertificateFiles, Columns, Config, DEFAULT_FILE, DatabaseUrl, Legacy, Log, LogFormat, New,
    Relay, Retention, Retry, StatusWords, TableName, Verify, entities, names, tokens,
};
use crate::redact::Rules;

/// The variable that names the file.
const FILE_VARIABLE: &str = "OUTBOX_RELAY_CONFIG";

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const FORMAT: Word<LogFormat> = Word(&[("text", LogFormat::Text), ("json", LogFormat::Json)]);
/// What `alerts.causes` may hold.
const CAUSE: Word<&'static str> = Word(&[
    ("starting", "starting"),
    ("stopped", "stopped"),
    ("unmapped", "unmapped"),
    ("breaker_open", "breaker_open"),
    ("database_away", "database_away"),
    ("lane_stopped", "lane_stopped"),
    ("divergent", "divergent"),
    ("rows_left", "rows_left"),
    ("reload", "reload"),
    ("slow", "slow"),
    ("paused", "paused"),
]);
/// All but what is done on purpose, and what passes by itself.
const USUAL_CAUSES: [&str; 9] = [
    "starting",
    "stopped",
    "unmapped",
    "breaker_open",
    "database_away",
    "lane_stopped",
    "divergent",
    "reload",
    "rows_left",
];

/// What was configured, whether or not it is right.
#[derive(Debug)]
pub struct Resolved {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Every key outside lists, with its effective value and where it came from, in the order of the sections.
    pub settings: Vec<Setting>,
    /// The configuration, or all that is wrong with it.
    pub config: Result<Config, ConfigErrors>,
}

impl Config {
    /// Reads the configuration: flag over environment over file over default. `file` is `--config`; without it
    /// `OUTBOX_RELAY_CONFIG` is asked, then `outbox-relay.toml` in the working directory; no file at all is fine as long as
    /// the environment says enough.
    pub fn load(
        file: Option<&Path>,
        overrides: &Overrides,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        Config::resolve(file, overrides, env).config
    }

    /// As [`Config::load`], with the origin of each value.
    pub fn resolve(
        file: Option<&Path>,
        overrides: &Overrides,
        env: impl Iterator<Item = (String, String)>,
    ) -> Resolved {
        let variables: BTreeMap<String, String> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        let (file, named_by) = match (file, variables.get(FILE_VARIABLE)) {
            (Some(file), _) => (Some(file.to_owned()), Some(Place::Flag("--config".to_owned()))),
            (None, Some(file)) => (Some(PathBuf::from(file)), Some(Place::Variable(FILE_VARIABLE.to_owned()))),
            (None, None) => (Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()), None),
        };
        let failed =
            |file: &Option<PathBuf>, errors| Resolved { file: file.clone(), settings: vec![], config: Err(errors) };
        let text = match file.as_deref().map(|file| read_file(file, named_by)).transpose() {
            Ok(text) => text.unwrap_or_default(),
            Err(errors) => return failed(&file, errors),
        };
        let document = match file.as_deref().map(|file| Document::parse(file, &text)).transpose() {
            Ok(document) => document,
            Err(problems) => return failed(&file, in_order(problems)),
        };
        let mut reader = Reader::new(document.as_ref(), &variables, overrides);
        let config = Config { file: file.clone(), ..read(&mut reader) };
        reader.report_unknown();
        let Reader { settings, problems, .. } = reader;
        Resolved { file, settings, config: if problems.is_empty() { Ok(config) } else { Err(in_order(problems)) } }
    }

    /// Everything by default, and no entity; for tests and the demo.
    pub fn for_databases(legacy: &str, new: &str) -> Result<Config, String> {
        let (variables, overrides) = (BTreeMap::new(), Overrides::default());
        let mut config = read(&mut Reader::new(None, &variables, &overrides));
        config.legacy.url = DatabaseUrl::parse(legacy)?;
        config.new.url = DatabaseUrl::parse(new)?;
        Ok(config)
    }
}

/// The process's environment, as [`Config::load`] takes it; variables that are not Unicode are none of ours.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

pub(super) fn read_file(path: &Path, named_by: Option<Place>) -> Result<String, ConfigErrors> {
    std::fs::read_to_string(path).map_err(|error| {
        ConfigErrors(vec![Problem {
            code: Code::File,
            place: named_by.unwrap_or(Place::Nowhere),
            what: format!("the configuration file {} cannot be read: {error}", path.display()),
            remedy: "mend the path or the file; `outbox-relay config` prints one to start from".to_owned(),
        }])
    })
}

/// File first, from top to bottom.
pub(super) fn in_order(mut problems: Vec<Problem>) -> ConfigErrors {
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    ConfigErrors(problems)
}

fn read(r: &mut Reader<'_>) -> Config {
    const URL: &str = "\"postgres://user@host:5432/database\"";
    let nowhere = || DatabaseUrl(String::new());
    let legacy = Legacy {
        url: r.require("legacy.url", Url, URL).unwrap_or_else(nowhere),
        schema: r.get("legacy.schema", NAME, "outbox_relay".to_owned()),
        outbox: r.get("legacy.outbox", TABLE, TableName { schema: "public".to_owned(), table: "outbox".to_owned() }),
        prepared_statements: r.get("legacy.prepared_statements", Truth, true),
        columns: columns(r),
        status: status_words(r),
    };
    let new = New {
        url: r.require("new.url", Url, URL).unwrap_or_else(nowhere),
        schema: r.get("new.schema", NAME, "outbox_relay".to_owned()),
        search_path: r.get("new.search_path", NAME, "public".to_owned()),
        prepared_statements: r.get("new.prepared_statements", Truth, true),
    };
    let relay = Relay {
        workers: r.get("relay.workers", Number(1..=256), 4),
        batch: r.get("relay.batch", Number(1..=100_000), 2000),
        batch_bytes: r.get("relay.batch_bytes", Size(1 << 10..=1 << 30), 4 << 20),
        lanes: r.get("relay.lanes", Number(1..=1024), 16),
        deadline: r.get("relay.deadline", Time(secs(1)..=HOUR), secs(30)),
        poll_max: r.get("relay.poll_max", Time(millis(1)..=MINUTE), millis(250)),
        linger: r.get("relay.linger", Time(Duration::ZERO..=MINUTE), Duration::ZERO),
        replica_lag: r.get("relay.replica_lag", Time(Duration::ZERO..=30 * DAY), HOUR),
    };
    let retry = Retry {
        initial: r.get("retry.initial", Time(millis(1)..=DAY), secs(1)),
        max: r.get("retry.max", Time(millis(1)..=30 * DAY), 5 * MINUTE),
        attempts: r.get("retry.attempts", Number(1..=1_000_000), 10),
        patience: r.get("retry.patience", Time(Duration::ZERO..=30 * DAY), 10 * MINUTE),
    };
    if retry.max < retry.initial {
        let place = [r.written("retry.max"), r.written("retry.initial")];
        let place = place.into_iter().find(|place| *place != Place::Nowhere).unwrap_or(Place::Nowhere);
        let what = "`retry.max` is shorter than `retry.initial`";
        r.report(Code::Conflict, place, what, "let the longest pause be at least as long as the first");
    }
    let retention = Retention {
        processed: r.get("retention.processed", Time(Duration::ZERO..=36_500 * DAY), 7 * DAY),
        skipped: r.get("retention.skipped", Time(Duration::ZERO..=36_500 * DAY), 30 * DAY),
    };
    let (tokens, token_files) = tokens::read(r);
    let admin = Admin {
        listen: r.get("admin.listen", ADDRESS, ([127, 0, 0, 1], 8080).into()),
        hosts: r.get("admin.hosts", List(HOST), vec![]),
        max_connections: r.get("admin.max_connections", Number(1..=65_535), 512),
        tls: certificate(r),
        behind_proxy: r.get("admin.behind_proxy", Truth, false),
        url: r.get("admin.url", PAGE, String::new()),
        tokens,
        token_files,
    };
    let alerts = Alerts {
        webhook: r.get("alerts.webhook", Hook, None),
        lag: r.get("alerts.lag", Time(Duration::ZERO..=365 * DAY), 5 * MINUTE),
        failures: r.get("alerts.failures", Number(0..=1_000_000_000), 1),
        causes: r.get("alerts.causes", List(CAUSE), USUAL_CAUSES.to_vec()),
        after: r.get("alerts.after", Time(Duration::ZERO..=DAY), MINUTE),
        recovery: r.get("alerts.recovery", Time(Duration::ZERO..=DAY), 2 * MINUTE),
        repeat: r.get("alerts.repeat", Time(Duration::ZERO..=365 * DAY), 4 * HOUR),
    };
    let columns = r.get("redact.columns", List(COLUMN), vec![]);
    let redact = Rules {
        paths: r.get("redact.paths", List(PATH), vec![]),
        columns: columns.iter().filter_map(|text| names::column(text, &new.search_path).ok()).collect(),
        payloads_for_readers: r.get("redact.payloads_for_readers", Truth, false),
    };
    let log = Log {
        format: r.get("log.format", FORMAT, LogFormat::Text),
        filter: r.get("log.filter", FILTER, "info".to_owned()),
    };
    let backfill = Backfill {
        workers: r.get("backfill.workers", Number(1..=64), 4),
        lock_time: r.get("backfill.lock_time", Time(millis(1)..=secs(10)), millis(50)),
        rows_per_second: r.get("backfill.rows_per_second", Number(0..=10_000_000), 0),
        max_sessions: r.get("backfill.max_sessions", Number(0..=100_000), 0),
        max_replica_lag: r.get("backfill.max_replica_lag", Time(Duration::ZERO..=DAY), Duration::ZERO),
        max_refused: r.get("backfill.max_refused", Number(0..=1_000_000_000), 1_000),
    };
    let verify = Verify {
        every: r.get("verify.every", Time(Duration::ZERO..=365 * DAY), Duration::ZERO),
        rate: r.get("verify.rate", Number(100..=10_000_000), 20_000),
    };
    let entities = entities::read(r, &new.search_path);
    let redact = redact.into();
    Config { file: None, legacy, new, relay, retry, retention, admin, alerts, redact, log, backfill, verify, entities }
}

fn columns(r: &mut Reader<'_>) -> Columns {
    let from = r.settings.len();
    let mut column = |key, name: &str| r.get(key, NAME, name.to_owned());
    let columns = Columns {
        id: column("legacy.columns.id", "id"),
        event_id: column("legacy.columns.event_id", "event_id"),
        aggregate_type: column("legacy.columns.aggregate_type", "aggregate_type"),
        aggregate_id: column("legacy.columns.aggregate_id", "aggregate_id"),
        event_type: column("legacy.columns.event_type", "event_type"),
        payload: column("legacy.columns.payload", "payload"),
        headers: column("legacy.columns.headers", "headers"),
        created_at: column("legacy.columns.created_at", "created_at"),
        status: column("legacy.columns.status", "status"),
        attempts: column("legacy.columns.attempts", "attempts"),
        next_attempt_at: column("legacy.columns.next_attempt_at", "next_attempt_at"),
        processed_at: column("legacy.columns.processed_at", "processed_at"),
        last_error: column("legacy.columns.last_error", "last_error"),
    };
    report_repeated(r, from, "each of these needs a column of its own");
    columns
}

fn status_words(r: &mut Reader<'_>) -> StatusWords {
    let from = r.settings.len();
    let mut word = |key, name: &str| r.get(key, PHRASE, name.to_owned());
    let words = StatusWords {
        pending: word("legacy.status.pending", "pending"),
        retry: word("legacy.status.retry", "retry"),
        held: word("legacy.status.held", "held"),
        processed: word("legacy.status.processed", "processed"),
        failed: word("legacy.status.failed", "failed"),
        skipped: word("legacy.status.skipped", "skipped"),
    };
    report_repeated(r, from, "each status needs a word of its own");
    words
}

/// Of the settings read since `from`, no two may be the same.
fn report_repeated(r: &mut Reader<'_>, from: usize, remedy: &str) {
    let settings = r.settings[from..].to_vec();
    for (n, setting) in settings.iter().enumerate() {
        let same = settings[..n].iter().find(|other| other.value == setting.value && !setting.value.is_empty());
        if let Some(same) = same {
            let what = format!("`{}` and `{}` are both {}", same.key, setting.key, setting.value);
            let written = [&setting.origin, &same.origin].into_iter().find_map(|origin| match origin {
                Origin::Written(place) => Some(place.clone()),
                _ => None,
            });
            r.report(Code::Conflict, written.unwrap_or(Place::Nowhere), what, remedy);
        }
    }
}

fn certificate(r: &mut Reader<'_>) -> Option<CertificateFiles> {
    let (certificate, key) = (r.get("admin.tls_cert", PemFile, None), r.get("admin.tls_key", PemFile, None));
    let folder = r.folder();
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Some(CertificateFiles { certificate: folder.join(certificate), key: folder.join(key) })
        }
        (None, None) => None,
        (certificate, _) => {
            let (given, other) = if certificate.is_some() { ("tls_cert", "tls_key") } else { ("tls_key", "tls_cert") };
            let place = r.written(&format!("admin.{given}"));
            // One that was written wrong is told of already.
            if r.written(&format!("admin.{other}")) == Place::Nowhere {
                let what = format!("`admin.{given}` is set, and `admin.{other}` is not");
                r.report(Code::Conflict, place, what, "name both files, or neither");
            }
            None
        }
    }
}

impl Admin {
    /// Why the server may not start on this address, if so; `run` asks before it listens.
    pub fn refusal(&self) -> Option<String> {
        let (listen, port) = (self.listen, self.listen.port());
        if self.behind_proxy && self.tokens.is_empty() {
            Some(
                "admin.behind_proxy is set, and no token is configured: whoever the proxy lets through would be an administrator; set \
                 OUTBOX_RELAY_ADMIN_TOKEN (or OUTBOX_RELAY_ADMIN_TOKEN_FILE)"
                    .to_owned(),
            )
        } else if listen.ip().is_loopback() {
            None
        } else if self.tokens.is_empty() {
            Some(format!(
                "admin.listen is {listen}, which others can reach, and no token is configured; set OUTBOX_RELAY_ADMIN_TOKEN (or \
                 OUTBOX_RELAY_ADMIN_TOKEN_FILE), or listen on 127.0.0.1:{port}"
            ))
        } else if self.tls.is_none() && !self.behind_proxy {
            Some(format!(
                "admin.listen is {listen}, which others can reach, and without TLS tokens would cross the network in the clear; set \
                 admin.tls_cert and admin.tls_key, or admin.behind_proxy = true if all that comes from outside comes through a proxy \
                 that speaks TLS (or listen on 127.0.0.1:{port})"
            ))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Action, OnFailure, Role, Token};
    use super::*;

    const URLS: &str = "[legacy]\nurl = 'postgres://l:s3cret@legacy/m'\n[new]\nurl = 'postgres://n:s3cret@new/u'\n";

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(files: &[(&str, &str)]) -> Folder {
            let folder = Folder(tempfile::tempdir().unwrap());
            files.iter().for_each(|(path, text)| folder.write(path, text));
            folder
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn path(&self, path: &str) -> String {
            self.0.path().join(path).display().to_string()
        }

        fn load(&self, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Config::load(Some(&self.0.path().join("outbox-relay.toml")), &Overrides::default(), env)
        }

        /// Each problem as `line:column code: what | remedy`.
        fn problems(&self, env: &[(&str, &str)]) -> Vec<String> {
            let place = |place: &Place| match place {
                Place::File { line, column, .. } => format!("{line}:{column}"),
                Place::Nowhere => "-".to_owned(),
                Place::Variable(name) | Place::Flag(name) => name.clone(),
            };
            let errors = self.load(env).unwrap_err();
            assert!(!errors.to_string().contains("s3cret"), "{errors}");
            let told = |p: &Problem| {
                format!("{} {}: {} | {}", place(&p.place), p.code.as_str(), p.what, p.remedy)
                    .replace(&self.path(""), "")
            };
            errors.problems().iter().map(told).collect()
        }
    }

    fn problems(text: &str) -> Vec<String> {
        Folder::with(&[("outbox-relay.toml", text)]).problems(&[])
    }

    fn problems_of_env(env: &[(&str, &str)]) -> Vec<String> {
        Folder::with(&[("outbox-relay.toml", URLS)]).problems(env)
    }

    #[test]
    fn what_tells_rows_and_owners_apart_is_always_compared() {
        let text = format!(
            "{URLS}[[entity]]\naggregate_type = \"Order\"\ntable = \"lines\"\nkey = [\"line\"]\nreplace_by = [\"order_id\"]\n\
             events = {{ OrderUpdated = \"upsert\" }}\nverify = {{ ignore = [{{ column = \"line\", reason = \"a\" }}, \
             {{ column = \"order_id\", reason = \"b\" }}, {{ column = \"note\", reason = \"c\" }}] }}\n"
        );
        let found = problems(&text);
        let told: Vec<_> =
            found.iter().filter_map(|said| said.split_once("config.conflict: ").map(|(_, told)| told)).collect();
        assert_eq!(
            told,
            [
                "`entity.verify.ignore` names the key column line | a key is always compared: remove it",
                "`entity.verify.ignore` names the column of replace_by order_id | whose a row is is always compared: remove it"
            ]
        );
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_whole_file_is_read() {
        let folder = Folder::with(&[
            (
                "outbox-relay.toml",
                &format!(
                    r#"{URLS}
search_path = "app"
[relay]
workers = 8
deadline = "1m"
batch_bytes = "1MiB"
[retention]
processed = "0s"
[[entity]]
aggregate_type = "User"
table = "users"
key = ["id"]
mapping = "mappings/user.sql"
on_failure = "pass"
[entity.events]
UserCreated = "upsert"
UserDeleted = "delete"
UserSeen = "ignore"
UserMerged = {{ sql = "handlers/merge.sql" }}
[[entity]]
name = "profiles"
aggregate_type = "User"
table = 'other."pro.files"'
key = ["user_id", "kind"]
replace_by = ["user_id"]
[entity.events]
UserCreated = "upsert"
[[entity]]
aggregate_type = "Audit"
events = {{ Audited = "ignore" }}
[[admin.token]]
name = "alice"
role = "admin"
file = "alice.token"
"#
                ),
            ),
            ("mappings/user.sql", "SELECT 1"),
            ("handlers/merge.sql", "DELETE"),
            ("alice.token", "abc0123456789abc\n"),
        ]);
        let config = folder.load(&[("OUTBOX_RELAY_READ_TOKEN", "0123456789defdef"), ("PATH", "/bin")]).unwrap();
        assert_eq!(config.relay.workers, 8);
        assert_eq!(config.relay.deadline, MINUTE);
        assert_eq!(config.relay.batch_bytes, 1 << 20);
        assert_eq!(config.relay.lanes, 16);
        assert_eq!(config.retention.processed, Duration::ZERO);
        let [user, profiles, audit] = &config.entities[..] else { panic!("{:?}", config.entities) };
        assert_eq!((user.name.as_str(), user.line, user.on_failure), ("users", 13, OnFailure::Pass));
        assert_eq!(user.table.as_ref().unwrap().to_string(), "app.users");
        assert_eq!(user.mapping.as_ref().unwrap().text, "SELECT 1");
        assert_eq!(user.mapping.as_ref().unwrap().path, Path::new("mappings/user.sql"));
        assert!(matches!(&user.events["UserMerged"], Action::Sql(file) if file.text == "DELETE"));
        assert_eq!(user.events["UserSeen"], Action::Ignore);
        assert_eq!(profiles.table.as_ref().unwrap().sql(), r#""other"."pro.files""#);
        assert_eq!(profiles.replace_by, ["user_id"]);
        assert_eq!((audit.name.as_str(), &audit.table), ("Audit", &None));
        let tokens: Vec<_> = config.admin.tokens.iter().map(|t| (t.name.as_str(), t.role, t.secret.as_str())).collect();
        assert_eq!(tokens, [("read", Role::Read, "0123456789defdef"), ("alice", Role::Admin, "abc0123456789abc")]);
        assert!(!format!("{config:?}").contains("s3cret"));
        assert!(!format!("{:?}", config.admin.tokens).contains("abc"));
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_place_and_remedy() {
        let text = r#"relay = 5
workers = 4
[legacy]
ulr = "postgres://l:s3cret@legacy/m"
outbox = "a.b.c"
columns.payload = "id"
prepared_statements = "yes"
[new]
url = "mysql://n:s3cret@new/u"
batch = 10
[retry]
initial = 1
max = "1ms"
attempts = "10"
[retention]
processed = "soon"
[admin]
listen = "localhost:8080"
"#;
        let expected = [
            "1:1 config.value: `relay` is a section, not a key | write [relay], and its keys below it",
            "2:1 config.unknown: unknown key `workers` | `workers` belongs under [relay]",
            "4:1 config.unknown: unknown key `legacy.ulr` | did you mean `url`?",
            "5:10 config.value: `legacy.outbox` is \"a.b.c\": it has more than two parts; a name with a dot in it stands in double quotes | write outbox = \"public.outbox\", for example",
            "6:19 config.conflict: `legacy.columns.id` and `legacy.columns.payload` are both \"id\" | each of these needs a column of its own",
            "7:23 config.value: `legacy.prepared_statements` is \"yes\": it must be true or false, without quotes | write prepared_statements = true, for example",
            "9:7 config.value: `new.url`: it does not begin with postgres:// or postgresql:// | write url = \"postgres://user@host:5432/database\", for example",
            "10:1 config.unknown: unknown key `new.batch` | `batch` belongs under [relay]",
            "12:11 config.value: `retry.initial` is 1: a duration needs its unit | write initial = \"1s\", for example",
            "13:7 config.conflict: `retry.max` is shorter than `retry.initial` | let the longest pause be at least as long as the first",
            "14:12 config.value: `retry.attempts` is \"10\": a number is written without quotes | write attempts = 10, for example",
            "16:13 config.value: `retention.processed` is \"soon\": it must be a duration from 0s to 36500d, such as \"250ms\", \"30s\" or \"7d\" | write processed = \"7d\", for example",
            "18:10 config.value: `admin.listen` is \"localhost:8080\": it must be an IP address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\" | write listen = \"127.0.0.1:8080\", for example",
            "- config.missing: `legacy.url` is missing | write url = \"postgres://user@host:5432/database\" under [legacy] in outbox-relay.toml, or set OUTBOX_RELAY_LEGACY__URL",
        ];
        let found = problems(text);
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn mistakes_in_entities_are_told_with_their_place_and_remedy() {
        let text = format!(
            r#"{URLS}
[[entity]]
aggregate_type = "User"
tabel = "users"
key = []
mapping = "mappings/user.sql"
[entity.events]
UserCreated = "upsrt"
UserChanged = "upsert"
UserMerged = {{ sql = "none.sql" }}
UserSplit = "split.sql"

[[entity]]
name = "users"
aggregate_type = "User"
on_failure = "wait"
[entity.events]
A = "ignore"

[[entity]]
name = "users"
aggregate_type = ""
events = {{ A = {{ slq = "a.sql" }} }}

[[entity]]
name = "users"
aggregate_type = "B"
events = {{ B = "ignore" }}

[[entity]]
name = "empty"
"#
        );
        let found = problems(&text);
        let expected = [
            "6:1 config.missing: `entity.table` is missing, which `UserChanged` needs | write table = \"users\"",
            "8:1 config.unknown: unknown key `entity.tabel` | did you mean `table`?",
            "9:7 config.value: `entity.key` is empty, which `UserChanged` needs | name the columns of the table's key: key = [\"id\"]",
            "10:11 config.file: `entity.mapping` names mappings/user.sql, which cannot be read: No such file or directory (os error 2) | mend the path, which starts at the configuration file's folder, or the file's permissions",
            "12:15 config.value: `entity.events.UserCreated` is \"upsrt\": it must be \"upsert\", \"delete\" or \"ignore\", or { sql = \"file.sql\" } | write UserCreated = \"upsert\", for example",
            "14:22 config.file: `entity.events.UserMerged.sql` names none.sql, which cannot be read: No such file or directory (os error 2) | mend the path, which starts at the configuration file's folder, or the file's permissions",
            "15:13 config.value: `entity.events.UserSplit` is \"split.sql\": it must be \"upsert\", \"delete\" or \"ignore\", or { sql = \"file.sql\" } | write UserSplit = { sql = \"split.sql\" }",
            "20:14 config.value: `entity.on_failure` is \"wait\": it must be \"hold\" or \"pass\" | write on_failure = \"hold\", for example",
            "26:18 config.value: `entity.aggregate_type` is \"\": it is empty | write aggregate_type = \"User\", for example",
            "27:16 config.unknown: unknown key `entity.events.A.slq` | write A = { sql = \"handlers/file.sql\" }",
            "29:1 config.conflict: two entities are called \"users\"; the other is in line 17 | give this one a name of its own: name = \"…\"",
            "34:1 config.missing: `entity.aggregate_type` is missing | write aggregate_type = \"User\"",
            "34:1 config.missing: the entity takes no events | below it, write [entity.events] and each event type with its action: UserCreated = \"upsert\"",
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn a_syntax_error_is_told_with_its_place_and_without_the_line() {
        let found = problems("[legacy]\nurl = postgres://l:s3cret@legacy/m\n");
        assert!(found[0].starts_with("2:7 config.syntax: "), "{found:?}");
        let found = problems("[legacy]\nurl = \"postgres://l:s3cret@legacy/m\n");
        assert!(found[0].starts_with("2:"), "{found:?}");
        let found = problems("[[entity]]\nmapping = 'a'\nmapping = 'b'\n");
        assert!(found[0].starts_with("3:1 config.syntax: duplicate key `mapping`"), "{found:?}");
    }

    #[test]
    fn every_key_can_be_set_by_a_variable_or_a_file_that_wins_over_the_configuration_file() {
        let folder = Folder::with(&[("outbox-relay.toml", URLS), ("url", "postgres://l:s3cret@other/m\r\n")]);
        let config = folder
            .load(&[
                ("OUTBOX_RELAY_LEGACY__URL_FILE", &folder.path("url")),
                ("OUTBOX_RELAY_LEGACY__COLUMNS__PAYLOAD", "body"),
                ("OUTBOX_RELAY_RELAY__WORKERS", "2"),
                ("OUTBOX_RELAY_RELAY__POLL_MAX", "1s"),
                ("OUTBOX_RELAY_LOG__FORMAT", "json"),
                ("OUTBOX_RELAY_NEW__PREPARED_STATEMENTS", "false"),
                ("OUTBOX_RELAY_PORT", "tcp://10.0.0.1:80"),
            ])
            .unwrap();
        assert_eq!(config.legacy.url.expose(), "postgres://l:s3cret@other/m");
        assert_eq!(config.legacy.columns.payload, "body");
        assert_eq!((config.relay.workers, config.relay.poll_max), (2, secs(1)));
        assert_eq!(config.log.format, LogFormat::Json);
        assert!(!config.new.prepared_statements);
    }

    #[test]
    fn mistakes_in_the_environment_name_the_variable() {
        let found = problems_of_env(&[
            ("OUTBOX_RELAY_LEGACY__ULR", "x"),
            ("OUTBOX_RELAY_LEGACY__OUTBOX", "a"),
            ("OUTBOX_RELAY_LEGACY__OUTBOX_FILE", "b"),
            ("OUTBOX_RELAY_RELAY__DEADLINE", "30"),
            ("OUTBOX_RELAY_NEW__URL", "s3cret"),
            ("OUTBOX_RELAY_NEW__SCHEMA_FILE", "/does/not/exist"),
            ("OUTBOX_RELAY_ADMIN_TOKEN", ""),
        ]);
        let expected = [
            "OUTBOX_RELAY_ADMIN_TOKEN config.value: the token \"admin\" is empty, or holds spaces or characters beyond ASCII | use the output of `openssl rand -hex 32`, or unset it",
            "OUTBOX_RELAY_LEGACY__OUTBOX_FILE config.conflict: OUTBOX_RELAY_LEGACY__OUTBOX and OUTBOX_RELAY_LEGACY__OUTBOX_FILE are both set | unset one of them",
            "OUTBOX_RELAY_LEGACY__ULR config.unknown: OUTBOX_RELAY_LEGACY__ULR sets no known key | did you mean OUTBOX_RELAY_LEGACY__URL?",
            "OUTBOX_RELAY_NEW__SCHEMA_FILE config.file: OUTBOX_RELAY_NEW__SCHEMA_FILE names /does/not/exist, which cannot be read: No such file or directory (os error 2) | let OUTBOX_RELAY_NEW__SCHEMA_FILE name a file that this user may read",
            "OUTBOX_RELAY_NEW__URL config.value: `new.url`: it does not begin with postgres:// or postgresql:// | set OUTBOX_RELAY_NEW__URL=postgres://user@host:5432/database, for example",
            "OUTBOX_RELAY_RELAY__DEADLINE config.value: `relay.deadline` is 30: a duration needs its unit | set OUTBOX_RELAY_RELAY__DEADLINE=30s, for example",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_flag_wins_over_variable_and_file() {
        let mut overrides = Overrides::default();
        overrides.set("--workers", "relay.workers", Some(3)).set("--listen", "admin.listen", None::<String>);
        let env = [
            ("OUTBOX_RELAY_LEGACY__URL", "postgres://a/b"),
            ("OUTBOX_RELAY_NEW__URL", "postgres://a/c"),
            ("OUTBOX_RELAY_RELAY__WORKERS", "7"),
        ];
        let env = || env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        // No file at all is needed then.
        let resolved = Config::resolve(None, &overrides, env());
        assert_eq!(resolved.config.unwrap().relay.workers, 3);
        let workers = resolved.settings.iter().find(|setting| setting.key == "relay.workers").unwrap();
        assert_eq!((workers.value.as_str(), workers.origin.to_string().as_str()), ("3", "--workers"));
        overrides.set("--workers", "relay.workers", Some(0));
        let errors = Config::load(None, &overrides, env()).unwrap_err().to_string();
        assert_eq!(
            errors,
            "error[config.value]: `relay.workers` is 0: it must be a whole number from 1 to 256\n  --> --workers on the \
             command line\n  then: give --workers 4, for example"
        );
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let env = [(FILE_VARIABLE.to_owned(), "/does/not/exist.toml".to_owned())];
        let errors = Config::load(None, &Overrides::default(), env.into_iter()).unwrap_err();
        assert_eq!(errors.problems()[0].place, Place::Variable(FILE_VARIABLE.to_owned()));
        assert!(errors.to_string().contains("/does/not/exist.toml"), "{errors}");
    }

    #[test]
    fn tokens_must_be_told_apart() {
        let token = "[[admin.token]]\nname = 'read'\nrole = 'raed'\nfile = 't'\n[[admin.token]]\nname = 'read'\nrole = 'read'\nfile = 't'\n[[admin.token]]\nname = 'b'\nrole = 'read'\nfile = 't'\n";
        let folder = Folder::with(&[("outbox-relay.toml", &format!("{URLS}{token}")), ("t", "0123456789secret\n")]);
        let found = folder.problems(&[("OUTBOX_RELAY_READ_TOKEN", "0123456789-other")]);
        assert!(
            found[0].starts_with("7:8 config.value: `admin.token.role` is \"raed\": it must be \"admin\" or \"read\""),
            "{found:#?}"
        );
        assert!(found[1].contains("two tokens are called \"read\""), "{found:#?}");
        assert!(found[2].contains("the tokens \"read\" and \"b\" have the same secret"), "{found:#?}");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn an_open_address_without_tokens_is_refused() {
        let mut admin = Config::for_databases("postgres://a/b", "postgres://a/c").unwrap().admin;
        assert_eq!(admin.refusal(), None);
        admin.listen = "[::]:8080".parse().unwrap();
        assert!(admin.refusal().unwrap().contains("OUTBOX_RELAY_ADMIN_TOKEN"));
        admin.behind_proxy = true;
        assert!(admin.refusal().unwrap().contains("OUTBOX_RELAY_ADMIN_TOKEN"));
        admin.listen = "127.0.0.1:8080".parse().unwrap();
        assert!(
            admin.refusal().unwrap().contains("OUTBOX_RELAY_ADMIN_TOKEN"),
            "all that the proxy lets through is local"
        );
        admin.listen = "[::]:8080".parse().unwrap();
        admin.tokens.push(Token { name: "read".to_owned(), role: Role::Read, secret: "x".to_owned() });
        assert_eq!(admin.refusal(), None);
    }

    #[test]
    fn an_open_address_without_tls_is_refused_unless_a_proxy_has_it() {
        let folder = Folder::with(&[("outbox-relay.toml", &format!("{URLS}[admin]\nlisten = '0.0.0.0:8080'\n"))]);
        let token = ("OUTBOX_RELAY_ADMIN_TOKEN", "0123456789abcdef");
        let refusal = folder.load(&[token]).unwrap().admin.refusal().unwrap();
        for remedy in ["admin.tls_cert and admin.tls_key", "admin.behind_proxy = true", "listen on 127.0.0.1:8080"] {
            assert!(refusal.contains(remedy), "{refusal}");
        }
        let proxied = folder.load(&[token, ("OUTBOX_RELAY_ADMIN__BEHIND_PROXY", "true")]).unwrap();
        assert_eq!(proxied.admin.refusal(), None);
        let files = [("OUTBOX_RELAY_ADMIN__TLS_CERT", "tls/cert.pem"), ("OUTBOX_RELAY_ADMIN__TLS_KEY", "/run/key.pem")];
        let admin = folder.load(&[token, files[0], files[1]]).unwrap().admin;
        assert_eq!(admin.refusal(), None);
        let expected = CertificateFiles { certificate: folder.path("tls/cert.pem").into(), key: "/run/key.pem".into() };
        assert_eq!(admin.tls, Some(expected));
        let one = folder.problems(&[files[1]]);
        assert_eq!(
            one,
            [
                "OUTBOX_RELAY_ADMIN__TLS_KEY config.conflict: `admin.tls_key` is set, and `admin.tls_cert` is not | name both files, or neither"
            ]
        );
        let inline =
            folder.problems(&[files[0], ("OUTBOX_RELAY_ADMIN__TLS_KEY", "-----BEGIN PRIVATE KEY-----\ns3cret")]);
        assert!(
            inline.len() == 1 && inline[0].contains("name the file") && !inline[0].contains("s3cret"),
            "{inline:?}"
        );
    }

    #[test]
    fn an_edited_mapping_is_seen_and_a_broken_edit_is_told() {
        let entity = "[[entity]]\naggregate_type = 'User'\ntable = 'users'\nkey = ['id']\nmapping = 'm.sql'\nevents = { A = 'upsert' }\n";
        let folder = Folder::with(&[("outbox-relay.toml", &format!("{URLS}{entity}")), ("m.sql", "SELECT 1")]);
        let mut config = folder.load(&[]).unwrap();
        assert_eq!(config.entities_changed(), Ok(None));
        folder.write("m.sql", "SELECT 2");
        config.entities = config.entities_changed().unwrap().unwrap();
        assert_eq!(config.entities[0].mapping.as_ref().unwrap().text, "SELECT 2");
        assert_eq!(config.entities_changed(), Ok(None));
        fs::remove_file(folder.path("m.sql")).unwrap();
        assert!(config.entities_changed().unwrap_err().to_string().contains("m.sql, which cannot be read"));
        folder.write("m.sql", "SELECT 2");
        // Other sections are not its business.
        folder
            .write("outbox-relay.toml", &format!("{URLS}[relay]\nworkers = 0\n{}", entity.replace("upsert", "ignore")));
        assert_eq!(config.entities_changed().unwrap().unwrap()[0].events["A"], Action::Ignore);
        folder.write("outbox-relay.toml", "[");
        assert_eq!(config.entities_changed().unwrap_err().problems()[0].code, Code::Syntax);
    }

    /// A whole file, with a secret in it.
    const WHOLE: &str = "[legacy]\nurl = \"postgres://relay:hunter2s3cret@legacy:5432/monolith?sslmode=require\"\noutbox = \"app.outbox\"\n\
        columns = { id = \"relay_id\", event_id = \"id\", aggregate_type = \"aggregatetype\", aggregate_id = \"aggregateid\" }\n\
        [new]\nurl = \"postgres://relay:hunter2s3cret@new/users\"\n[relay]\nworkers = 4\nbatch_bytes = \"4MiB\"\ndeadline = \"30s\"\n\
        [retry]\ninitial = \"1s\"\n[admin]\nlisten = \"127.0.0.1:8080\"\n[[entity]]\naggregate_type = \"User\"\ntable = \"users\"\n\
        key = [\"id\"]\n[entity.events]\nUserCreated = \"upsert\"\nUserDeleted = \"delete\"\n";

    proptest::proptest! {
        #[test]
        fn a_file_with_a_slip_is_understood_or_refused_with_a_place_and_never_shows_a_password(
            at in 0..WHOLE.len(), deleted in 0usize..2, inserted in "[\\PC\n]{0,3}|[\"'\\[\\]{}=#.]{1,3}|\n(key|url|\\[relay\\]) ?= ?", name in "[A-Z_]{0,12}", value in "\\PC{0,12}"
        ) {
            let text = format!("{}{inserted}{}", &WHOLE[..at], &WHOLE[at + deleted..]);
            let variables = BTreeMap::from([(format!("{PREFIX}RELAY__{name}"), value.clone()), (format!("{PREFIX}LEGACY__{name}"), value)]);
            let mut shown = String::new();
            let problems = match Document::parse(Path::new("x.toml"), &text) {
                Ok(document) => {
                    let overrides = Overrides::default();
                    let mut reader = Reader::new(Some(&document), &variables, &overrides);
                    shown += &format!("{:?}", read(&mut reader));
                    reader.report_unknown();
                    shown += &format!("{:?}", reader.settings);
                    reader.problems
                }
                Err(problems) => {
                    proptest::prop_assert!(!problems.is_empty());
                    problems
                }
            };
            for problem in &problems {
                proptest::prop_assert!(!problem.what.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
                if let Place::File { line, column, .. } = &problem.place {
                    let known = text.lines().count() + 1;
                    proptest::prop_assert!((1..=known).contains(line) && *column >= 1, "{problem:?} of {known} lines");
                }
            }
            shown += &in_order(problems).to_string();
            // The slip itself may have cut the address apart, and the password with it.
            let is_whole = text.matches("hunter2s3cret").count() == 2;
            let place = WHOLE.find("postgres://relay").unwrap()..WHOLE.find("@legacy").unwrap();
            let other = WHOLE.rfind("postgres://relay").unwrap()..WHOLE.find("@new").unwrap();
            if is_whole && !place.contains(&at) && !other.contains(&at) {
                proptest::prop_assert!(!shown.contains("hunter2"), "{shown}");
            }
        }

        #[test]
        fn no_file_makes_the_loader_panic(text in "([a-z=\\[\\]{}\"'.0-9\n é#]|legacy|entity|events|url|key){0,60}") {
            if let Ok(document) = Document::parse(Path::new("x"), &text) {
                let (variables, overrides) = (BTreeMap::new(), Overrides::default());
                let mut reader = Reader::new(Some(&document), &variables, &overrides);
                read(&mut reader);
                reader.report_unknown();
            }
        }
    }
}
