//! What a run costs: processor time and memory of processes, as Linux counts them.

use std::fs;

use anyhow::{Context, Result};
use outbox_relay::demo::server::Server;

pub(crate) use crate::shared::servers::peak_memory;

/// Linux' unit of processor time in `/proc`, on every machine of these days.
const TICKS_A_SECOND: f64 = 100.0;

/// Seconds of processor time, user and system, spent so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cpu {
    /// The server with the outbox, all of its processes.
    pub(crate) legacy: f64,
    /// The server that events are applied to.
    pub(crate) new: f64,
    /// This program and the relays that it has waited for.
    pub(crate) client: f64,
}

impl Cpu {
    pub(crate) fn of(legacy: &Server, new: &Server) -> Result<Cpu> {
        let server = |server: &Server| tree(server.pid().context("a server is down")?);
        Ok(Cpu { legacy: server(legacy)?, new: server(new)?, client: with_waited(std::process::id())? })
    }

    pub(crate) fn since(self, before: Cpu) -> Cpu {
        Cpu { legacy: self.legacy - before.legacy, new: self.new - before.new, client: self.client - before.client }
    }

    pub(crate) fn sum(self) -> f64 {
        self.legacy + self.new + self.client
    }
}

/// A process with its children: those that live, and those that it has waited for.
fn tree(pid: u32) -> Result<f64> {
    let mut seconds = with_waited(pid)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        // One that has ended meanwhile is counted with its parent the next time.
        seconds += process(child.parse()?).unwrap_or(0.0);
    }
    Ok(seconds)
}

/// A process alone, that lives: its threads, to the nanosecond, where the scheduler tells; in ticks it would be nothing for whoever hardly does anything.
pub(crate) fn process(pid: u32) -> Result<f64> {
    let mut seconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let told = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let Some(spent) = told.split(' ').next().and_then(|spent| spent.parse::<f64>().ok()) else {
            return Ok(ticks(&stat(pid)?, UTIME));
        };
        seconds += spent / 1e9;
    }
    Ok(seconds)
}

/// With the children that it has waited for.
fn with_waited(pid: u32) -> Result<f64> {
    Ok(process(pid)? + ticks(&stat(pid)?, CUTIME))
}

/// The fields behind the command's name, which may hold anything.
fn stat(pid: u32) -> Result<Vec<f64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("an odd /proc/…/stat")?;
    Ok(fields.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
}

/// Where user and system time stand in it, and those of children that were waited for.
const UTIME: usize = 11;
const CUTIME: usize = 13;

fn ticks(stat: &[f64], at: usize) -> f64 {
    stat.iter().skip(at).take(2).sum::<f64>() / TICKS_A_SECOND
}
