//! Signals to a postmaster *and* its children, which are sessions of their own and so out of reach of its process group.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, User, geteuid};

/// The unprivileged account that a server runs as when this process is root, as which Postgres refuses to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// `None`: as ourselves.
    pub(super) fn for_server() -> anyhow::Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
        }
        bail!("Postgres does not run as root, and there is neither a user `postgres` nor `nobody`")
    }
}

/// The system's place for temporary files, or, where that is closed to `account` (as with `pam_tmpdir`), another.
pub(super) fn temporary_folder(account: Option<&Account>) -> anyhow::Result<PathBuf> {
    let first = std::env::temp_dir();
    let open = |folder: &Path| {
        let mut ancestors = folder.ancestors();
        ancestors.all(|it| fs::metadata(it).is_ok_and(|meta| meta.is_dir() && meta.permissions().mode() & 0o001 != 0))
    };
    let fits = |folder: &PathBuf| account.is_none() || open(folder);
    [first.clone(), "/tmp".into(), "/var/tmp".into()]
        .into_iter()
        .find(fits)
        .with_context(|| format!("the server's account cannot enter {}; set TMPDIR", first.display()))
}

/// Sends a signal; a process that is gone already is fine.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = signal::kill(Pid::from_raw(pid), signal);
    }
}

/// Whether the process runs; one that ended and waits to be reaped does not.
pub(super) fn is_alive(pid: u32) -> bool {
    let Ok(raw) = i32::try_from(pid) else { return false };
    if signal::kill(Pid::from_raw(raw), None) == Err(Errno::ESRCH) {
        return false;
    }
    state(pid) != Some('Z')
}

/// SIGSTOP to all. The postmaster first, so that no child is born unseen.
pub(super) fn freeze_tree(postmaster: u32) {
    signal(postmaster, Signal::SIGSTOP);
    let mut stopped = Vec::new();
    // Until a look finds nobody new: the stop itself may have come in the middle of a fork.
    loop {
        let children = children(postmaster);
        let new: Vec<u32> = children.into_iter().filter(|pid| !stopped.contains(pid)).collect();
        if new.is_empty() && state(postmaster).is_none_or(|state| state == 'T') {
            return;
        }
        new.iter().for_each(|&pid| signal(pid, Signal::SIGSTOP));
        stopped.extend(new);
    }
}

/// SIGCONT to all.
pub(super) fn thaw_tree(postmaster: u32) {
    children(postmaster).into_iter().for_each(|pid| signal(pid, Signal::SIGCONT));
    signal(postmaster, Signal::SIGCONT);
}

/// SIGKILL to all. The postmaster is reaped (as a zombie it would keep its lock file valid); the children, which may take
/// a moment, are returned.
pub(super) fn kill_tree(postmaster: &mut Child) -> Vec<u32> {
    freeze_tree(postmaster.id());
    let children = children(postmaster.id());
    signal(postmaster.id(), Signal::SIGKILL);
    children.iter().for_each(|&pid| signal(pid, Signal::SIGKILL));
    let _ = postmaster.wait();
    children
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).or_else(|_| {
        let output = Command::new("pgrep").arg("-P").arg(pid.to_string()).output()?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
    });
    list.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The letter that Linux has for a process' state; elsewhere `None`.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
