//! Where this machine keeps Postgres' server programs, which most distributions leave out of `PATH`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;

/// Names the folder of the binaries to use, before all other places.
const VARIABLE: &str = "OUTBOX_RELAY_PG_BIN";
const PROGRAMS: [&str; 3] = ["initdb", "postgres", "pg_basebackup"];

/// A folder with Postgres' server programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// Looks at `OUTBOX_RELAY_PG_BIN`, then `PATH`, then where Debian, Red Hat and Homebrew put them, newest version first.
    ///
    /// # Errors
    /// There is none: with what to install.
    pub fn find() -> anyhow::Result<Self> {
        if let Some(dir) = env::var_os(VARIABLE) {
            let dir = PathBuf::from(dir);
            return match Self::within(&dir) {
                Some(it) => Ok(it),
                None => bail!("{VARIABLE} is {}, where there is no {}", dir.display(), PROGRAMS.join(", ")),
            };
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = env::split_paths(&path).collect();
        places.extend(newest_first("/usr/lib/postgresql", "", "bin"));
        places.extend(newest_first("/usr", "pgsql-", "bin"));
        for brew in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
            places.extend(newest_first(brew, "postgresql@", "bin"));
            places.push(Path::new(brew).join("postgresql/bin"));
        }
        places.extend(newest_first("/Applications/Postgres.app/Contents/Versions", "", "bin"));
        match places.iter().find_map(|place| Self::within(place)) {
            Some(it) => Ok(it),
            None => bail!(
                "found no Postgres server programs ({}) on this machine\n  \
                 Debian, Ubuntu: apt-get install postgresql\n  \
                 Fedora, RHEL:   dnf install postgresql-server postgresql-contrib\n  \
                 macOS:          brew install postgresql@17\n  \
                 elsewhere:      {VARIABLE}=/the/folder/with/initdb",
                PROGRAMS.join(", ")
            ),
        }
    }

    /// The path of one program.
    pub fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }

    /// The folder, if it has all the programs; where it has but a link to the first, the folder that the link points to.
    fn within(dir: &Path) -> Option<Self> {
        let initdb = dir.join(PROGRAMS[0]).canonicalize().ok()?;
        [dir, initdb.parent()?]
            .into_iter()
            .find(|dir| PROGRAMS.iter().all(|program| dir.join(program).is_file()))
            .map(|dir| Self { dir: dir.to_owned() })
    }
}

/// `parent/<prefix><version>/<sub>` for each version there.
fn newest_first(parent: &str, prefix: &str, sub: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(prefix)?.split('.').next()?.parse().ok()?;
            Some((version, entry.path().join(sub)))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}
