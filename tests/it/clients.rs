//! The snippets of docs/writing-events.md, run with the real clients, under a role with just the rights that an application has.
//!
//! Python's and Node's packages come from their registries, once, into `target/clients`. Where that is not possible a test says
//! so and ends: nothing here depends on the network for the relay's own sake.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::readme::{blocks, page};
use crate::support::stage::Stage;

const GUIDE: &str = "docs/writing-events.md";

/// A legacy database with the guide's table, and the URL of an application on it.
async fn application() -> (Stage, String) {
    let stage = Stage::new().await;
    let role = format!("application_{}", Uuid::new_v4().simple());
    let database = &stage.pair.legacy;
    database
        .run(&format!(
            "CREATE TABLE users (id bigint PRIMARY KEY, first text NOT NULL, last text NOT NULL);
             INSERT INTO users SELECT id, 'Nobody', 'At All' FROM generate_series(1, 9) id;
             CREATE ROLE {role} LOGIN;
             GRANT USAGE ON SCHEMA public TO {role};
             GRANT SELECT, UPDATE ON users TO {role};
             GRANT INSERT (event_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at), SELECT (id, event_id)
                 ON outbox TO {role};"
        ))
        .await;
    let at = database.url.find("://").unwrap() + 3;
    let rest = &database.url[at..];
    let host = rest.find('@').map_or(rest, |at| &rest[at + 1..]);
    let url = format!("postgres://{role}@{host}");
    (stage, url)
}

/// The event that was written for this user, and that it names what stands in the table.
async fn wrote(stage: &Stage, user: i64, name: &str) {
    let event: String = stage
        .pair
        .legacy
        .value(&format!(
            "SELECT string_agg(concat_ws(' ', event_type, payload->>'id', payload->>'first', payload->>'last', jsonb_typeof(payload)), ';')
             FROM outbox WHERE aggregate_type = 'User' AND aggregate_id = '{user}'"
        ))
        .await;
    assert_eq!(event, format!("UserUpdated {user} {name} object"));
    let row: String =
        stage.pair.legacy.value(&format!("SELECT first || ' ' || last FROM users WHERE id = {user}")).await;
    assert_eq!(row, name);
}

fn the_block(tag: &str) -> String {
    let found = blocks(&page(GUIDE), tag);
    assert_eq!(found.len(), 1, "{tag}");
    found.concat()
}

fn clients() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("clients")
}

/// Runs a command; what it said, if it failed.
fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(output) } else { Err(format!("{command:?}:\n{}", said())) }
}

/// Two tests that install into one folder would be in each other's way.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Python with these packages; an error where there is none, or no registry.
fn python(packages: &[&str]) -> Result<PathBuf, String> {
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = clients().join("python");
    let python = folder.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    let modules = packages.iter().map(|package| package.split(['[', '=', '<']).next().unwrap_or(package));
    let imports: Vec<String> = modules.map(|module| format!("import {module}")).collect();
    if run(Command::new(&python).args(["-c", &imports.join("\n")])).is_err() {
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(packages))?;
    }
    Ok(python)
}

/// A folder with Node's `pg` in it; an error where there is no Node, or no registry.
fn node() -> Result<PathBuf, String> {
    let folder = clients().join("node");
    run(Command::new("node").arg("--version"))?;
    if !folder.join("node_modules/pg/package.json").exists() {
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        std::fs::write(folder.join("package.json"), r#"{"private": true}"#).map_err(|error| error.to_string())?;
        run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "pg@8"]).current_dir(&folder))?;
    }
    Ok(folder)
}

/// `None`, and a word about why, where a client cannot be had.
fn or_skipped<T>(what: &str, got: Result<T, String>) -> Option<T> {
    got.inspect_err(|why| eprintln!("skipped, for {what} cannot be had here: {why}")).ok()
}

#[tokio::test]
async fn the_snippets_of_the_guide_write_events_in_order() {
    let (stage, url) = application().await;
    let psql = run(Command::new("psql").args([&url, "-v", "ON_ERROR_STOP=1", "-c"]).arg(the_block("test-sql")));
    psql.unwrap();
    wrote(&stage, 1, "Ada King").await;
    if let Some(python) = or_skipped("psycopg", python(&["psycopg[binary]"])) {
        run(Command::new(python).env("DATABASE_URL", &url).args(["-c", &the_block("test-python")])).unwrap();
        wrote(&stage, 2, "Grace Hopper").await;
    }
    if let Some(folder) = or_skipped("node's pg", node()) {
        let mut command = Command::new("node");
        run(command.current_dir(folder).env("DATABASE_URL", &url).args(["-e", &the_block("test-node")])).unwrap();
        wrote(&stage, 3, "Katherine Johnson").await;
    }
}

#[tokio::test]
async fn the_django_and_sqlalchemy_snippets_write_events_in_order() {
    let (stage, url) = application().await;
    if let Some(python) = or_skipped("Django", python(&["psycopg[binary]", "django"])) {
        let script = format!(
            "import django, os, psycopg\nfrom django.conf import settings\n\
             at = psycopg.conninfo.conninfo_to_dict(os.environ['DATABASE_URL'])\n\
             settings.configure(DATABASES={{'default': {{'ENGINE': 'django.db.backends.postgresql', 'NAME': at['dbname'], 'USER': at['user'], \
             'HOST': at['host'], 'PORT': at['port']}}}}, DEFAULT_AUTO_FIELD='django.db.models.BigAutoField')\ndjango.setup()\n{}\n{}\nrename(4, 'Radia', 'Perlman')\n",
            the_block("test-django-models"),
            the_block("test-django-code")
        );
        run(Command::new(python).env("DATABASE_URL", &url).args(["-c", &script])).unwrap();
        wrote(&stage, 4, "Radia Perlman").await;
    }
    if let Some(python) = or_skipped("SQLAlchemy", python(&["psycopg[binary]", "sqlalchemy"])) {
        run(Command::new(python).env("DATABASE_URL", &url).args(["-c", &the_block("test-sqlalchemy")])).unwrap();
        wrote(&stage, 5, "Margaret Hamilton").await;
    }
}
