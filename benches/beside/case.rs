//! The cases: what each is called, and where it is.

use anyhow::Result;
use clap::ValueEnum;

use crate::ground::Ground;
use crate::report::Report;
use crate::{application, crowds, drains, floor, growth, latency, open};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// A backlog, drained by each contender
    Drain,
    /// The same with own SQL, where every event counts, ten of an aggregate in a row
    OwnSql,
    /// The same with two milliseconds added to every round trip to both servers
    Far,
    /// Half of all events of one aggregate
    Hot,
    /// One, two and four processes
    Instances,
    /// Payloads of other sizes
    Payload,
    /// Backlogs of other lengths
    Backlog,
    /// Beside crowds of failed, held and paused events
    Crowds,
    /// From commit to commit, while events are written one by one
    Latency,
    /// What it costs when nothing is to be done
    Idle,
    /// With a transaction that is open all the while
    Open,
    /// What it costs the application's own writers
    Application,
    /// What it leaves behind in the legacy database, with retention on
    Growth,
    /// The statements that cannot be done without, alone
    Floor,
}

/// How much is measured; what is not said is what the case is meant for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) size: Option<u32>,
    pub(crate) rounds: u32,
    pub(crate) seconds: Option<u64>,
}

impl Case {
    pub(crate) fn all() -> Vec<Case> {
        Case::value_variants().to_vec()
    }

    /// As on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Case::Drain => "Drain",
            Case::OwnSql => "Own SQL, every event counts, ten of an aggregate in a row",
            Case::Far => "2 ms more for every round trip to both servers",
            Case::Hot => "One hot aggregate: half of all events",
            Case::Instances => "Processes",
            Case::Payload => "Payloads",
            Case::Backlog => "Length of the backlog",
            Case::Crowds => "Crowds of failed, held and paused events",
            Case::Latency => "Latency, from commit to commit, by polling alone",
            Case::Idle => "Idle",
            Case::Open => "A transaction that is open all the while",
            Case::Application => "What the application's own writers notice",
            Case::Growth => "What is left behind in the legacy database",
            Case::Floor => "The statements that cannot be done without, alone",
        }
    }

    /// What its servers are to be set to, beside what all are.
    pub(crate) fn settings(self, scale: Scale) -> Vec<(&'static str, String)> {
        match self {
            Case::Latency | Case::Open => vec![("track_commit_timestamp", "on".to_owned())],
            Case::Backlog | Case::Crowds => vec![("shared_preload_libraries", "'pg_stat_statements'".to_owned())],
            Case::Growth => vec![("autovacuum_naptime", format!("'{}s'", growth::naptime(scale)))],
            _ => Vec::new(),
        }
    }

    pub(crate) async fn measure(self, ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
        match self {
            Case::Latency => latency::measure(ground, scale, relay).await,
            Case::Idle => latency::idle(ground, scale, relay).await,
            Case::Backlog => crowds::backlog(ground, scale, relay).await,
            Case::Crowds => crowds::measure(ground, scale, relay).await,
            Case::Open => open::measure(ground, scale, relay).await,
            Case::Application => application::measure(ground, scale, relay).await,
            Case::Growth => growth::measure(ground, scale, relay).await,
            Case::Floor => floor::measure(ground, scale).await,
            Case::Drain | Case::OwnSql | Case::Far | Case::Hot | Case::Instances | Case::Payload => {
                drains::measure(self, ground, scale, relay).await
            }
        }
    }
}
