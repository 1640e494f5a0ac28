//! What is known, at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::event::Lane;
use crate::operator::{Backlog, Paused};
use crate::relay::stops::StopReport;

/// Whether the relay of this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// It waits for its databases.
    Starting,
    #[default]
    Running,
    Stopping,
}

/// All that is judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) phase: Phase,
    /// What a relay that is starting waits for.
    pub(crate) waits_for: Option<String>,
    pub(crate) source_away: Option<String>,
    pub(crate) target_away: Option<(String, DateTime<Utc>)>,
    pub(crate) stopped_lanes: Vec<(Lane, String)>,
    pub(crate) slow_lanes: Vec<Lane>,
    pub(crate) stops: Vec<StopReport>,
    pub(crate) reload_error: Option<String>,
    pub(crate) paused: Vec<Paused>,
    pub(crate) divergent: u64,
    /// By entity, what its first copy left out, if it has ended and left any; `None`: not known yet.
    pub(crate) rows_left: Option<BTreeMap<String, u64>>,
    pub(crate) backlog: Option<Arc<Backlog>>,
    /// Failed events and those in retry, where they are known better than from the last count.
    pub(crate) failing: Option<(u64, u64)>,
    pub(crate) flow: Option<Flow>,
    pub(crate) now: DateTime<Utc>,
}

/// What has come and gone in the last minute or so.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Flow {
    /// Events a second.
    pub(crate) arriving: f64,
    pub(crate) leaving: f64,
    /// Seconds; `None`: nothing was applied.
    pub(crate) lag_p50: Option<f64>,
    pub(crate) lag_p99: Option<f64>,
}
