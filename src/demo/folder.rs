//! The demo's folder: a configuration as an operator would have it, to be read and edited while the demo runs.
//!
//! Guarantees: only its owner can look inside, and it goes with the process, also when that is killed.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::Context;
use uuid::Uuid;

use super::server::Server;
use super::server::guard::Guard;
use crate::sql::render;

const CONFIGURATION: &str = include_str!("template/outbox-relay.toml");
const FILES: [(&str, &str); 3] = [
    (CUSTOMER, include_str!("template/mappings/customer.sql")),
    ("mappings/order.sql", include_str!("template/mappings/order.sql")),
    ("handlers/user_credited.sql", include_str!("template/handlers/user_credited.sql")),
];
/// The mapping that the demo makes wrong.
pub(super) const CUSTOMER: &str = "mappings/customer.sql";

pub(super) struct Folder {
    path: PathBuf,
    /// Last: removes the folder.
    _guard: Guard,
}

impl Folder {
    /// Makes it where the system keeps temporary files, and writes the SQL files.
    pub(super) fn create() -> anyhow::Result<Folder> {
        let id = Uuid::new_v4().simple().to_string();
        let path = std::env::temp_dir().join(format!("outbox-relay-demo-{}", &id[..8]));
        let guard = Guard::make(&path)
            .with_context(|| format!("cannot create the folder {}; set TMPDIR to where it may be", path.display()))?;
        let folder = Folder { _guard: guard, path };
        for (name, text) in FILES {
            folder.write(name, text, 0o600)?;
        }
        Ok(folder)
    }

    /// Writes what names the servers: the configuration, and a `psql-…` for each.
    pub(super) fn introduce(&self, legacy: &Server, new: &Server, listen: SocketAddr) -> anyhow::Result<()> {
        let text = render(
            CONFIGURATION,
            &[("legacy_url", legacy.url("legacy")), ("new_url", new.url("new")), ("listen", listen.to_string())],
        );
        self.write("outbox-relay.toml", &text, 0o600)?;
        let mut passwords = String::new();
        for (server, database) in [(legacy, "legacy"), (new, "new")] {
            let port = server.port();
            passwords.push_str(&format!("127.0.0.1:{port}:*:postgres:{}\n", server.password().unwrap_or_default()));
            let beside = server.binaries().path("psql");
            let psql = if beside.is_file() { beside } else { PathBuf::from("psql") };
            let script = format!(
                "#!/bin/sh\n# psql on the demo's {database} database. Arguments go to psql: -c 'SELECT …'\n\
                 exec \"{}\" -d \"host=127.0.0.1 port={port} user=postgres dbname={database} passfile={}\" \"$@\"\n",
                psql.display(),
                self.path.join("pgpass").display(),
            );
            self.write(&format!("psql-{database}"), &script, 0o700)?;
        }
        self.write("pgpass", &passwords, 0o600)
    }

    /// Where the relay logs.
    pub(super) fn log(&self) -> PathBuf {
        self.file("relay.log")
    }

    /// The end of that log, for when there is no other way to see it.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("The relay's log ends with\n{}\n", lines[lines.len().saturating_sub(10)..].join("\n"))
    }

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The line, from 1, on which a text first stands in a file.
    pub(super) fn line_of(&self, name: &str, text: &str) -> Option<usize> {
        let file = fs::read_to_string(self.file(name)).ok()?;
        file.lines().position(|line| line.contains(text)).map(|at| at + 1)
    }

    /// Exchanges a text in a file, as an editor does: whoever reads meanwhile sees the old file or the new one. False: the text
    /// is not there.
    pub(super) fn edit(&self, name: &str, from: &str, to: &str) -> anyhow::Result<bool> {
        let path = self.file(name);
        let old = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !old.contains(from) {
            return Ok(false);
        }
        let temporary = format!("{name}.new");
        self.write(&temporary, &old.replace(from, to), 0o600)?;
        fs::rename(self.file(&temporary), path)?;
        Ok(true)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        let path = self.file(name);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(parent)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path)?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}
