//! What Prometheus is told. All names of metrics and labels are here, and are a contract: dashboards and alerts use them.
//!
//! Guarantees: the number of series is bounded whatever the application writes (an aggregate type beyond the first hundred
//! counts as `other`), and a scrape sees either the whole of a backlog or the whole of the next one. Counts are this
//! process's; gauges of the backlog are the database's, and so the same from every instance.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::event::Lane;
use crate::health::CAUSES;

/// Of what [`Metrics::encode`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// More aggregate types than this count as one.
const TYPES: usize = 100;
/// What they count as.
const OTHER: &str = "other";

macro_rules! labels {
    ($($name:ident { $($label:ident: $type:ty),+ })+) => {$(
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($label: $type),+ }
    )+};
}

labels! {
    OfEvents { disposition: String, aggregate_type: String }
    OfBacklog { aggregate_type: String, status: String }
    OfLane { lane: i32 }
    OfKind { kind: String }
    OfCause { cause: &'static str }
    OfResult { result: &'static str }
    OfSide { side: String }
    OfBreaker { what: String }
    OfCopy { entity: String }
    OfLeft { entity: String, reason: &'static str }
    OfFound { entity: String, kind: &'static str }
    OfRepair { entity: String, action: &'static str }
    OfLogin { why: &'static str }
    OfBuild { version: &'static str }
}

/// Seconds: from a millisecond to an hour and a half.
#[derive(Clone)]
struct Seconds(&'static [f64]);

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

const BATCH: Seconds = Seconds(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
const LAG: Seconds = Seconds(&[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0,
]);

/// The registry and all that is in it; clones are the same.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    // A scrape and the replacing of a gauge family exclude each other.
    registry: Mutex<Registry>,
    types: Mutex<HashSet<String>>,
    events: Family<OfEvents, Counter>,
    batch_duration: Histogram,
    lane_batches: Family<OfLane, Counter>,
    lag: Histogram,
    backlog: Family<OfBacklog, Gauge>,
    oldest_pending: Gauge<f64, std::sync::atomic::AtomicU64>,
    breaker_open: Family<OfBreaker, Gauge>,
    lane_stopped: Family<OfLane, Gauge>,
    degraded: Family<OfCause, Gauge>,
    alerts: Family<OfResult, Counter>,
    heals: Family<OfKind, Counter>,
    ghosts_ended: Family<OfSide, Counter>,
    retention_deleted: Counter,
    copied: Family<OfCopy, Gauge>,
    left: Family<OfLeft, Gauge>,
    remaining: Family<OfCopy, Gauge>,
    verified_at: Family<OfCopy, Gauge<f64, AtomicU64>>,
    verified_rows: Family<OfCopy, Gauge>,
    verified_in: Family<OfCopy, Gauge<f64, AtomicU64>>,
    differences: Family<OfFound, Gauge>,
    repaired: Family<OfRepair, Gauge>,
    connections_refused: Counter,
    failed_logins: Family<OfLogin, Counter>,
    // For the page: what a registry does not give back.
    processed: AtomicU64,
    lags: [AtomicU64; LAG_BUCKETS],
    batches: Mutex<Vec<u64>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("outbox_relay");
        let inner = Inner {
            types: Mutex::default(),
            events: Family::default(),
            batch_duration: BATCH.new_metric(),
            lane_batches: Family::default(),
            lag: LAG.new_metric(),
            backlog: Family::default(),
            oldest_pending: Gauge::default(),
            breaker_open: Family::default(),
            lane_stopped: Family::default(),
            degraded: Family::default(),
            alerts: Family::default(),
            heals: Family::default(),
            ghosts_ended: Family::default(),
            retention_deleted: Counter::default(),
            copied: Family::default(),
            left: Family::default(),
            remaining: Family::default(),
            verified_at: Family::default(),
            verified_rows: Family::default(),
            verified_in: Family::default(),
            differences: Family::default(),
            repaired: Family::default(),
            connections_refused: Counter::default(),
            failed_logins: Family::default(),
            processed: AtomicU64::new(0),
            lags: std::array::from_fn(|_| AtomicU64::new(0)),
            batches: Mutex::default(),
            registry: Mutex::default(),
        };
        registry.register(
            "build",
            "The version that is running",
            Info::new(OfBuild { version: env!("CARGO_PKG_VERSION") }),
        );
        registry.register(
            "events",
            "Events settled by this process, by what became of them (processed, retry, held, failed)",
            inner.events.clone(),
        );
        registry.register_with_unit(
            "batch_duration",
            "From the lock of the lane to the commit on the source",
            Unit::Seconds,
            inner.batch_duration.clone(),
        );
        registry.register("lane_batches", "Batches settled by this process, by lane", inner.lane_batches.clone());
        registry.register_with_unit(
            "lag",
            "From an event's created_at to its being settled, both on the source's clock. created_at is the start of the \
             writer's transaction: a long transaction of the application counts as lag",
            Unit::Seconds,
            inner.lag.clone(),
        );
        registry.register(
            "backlog",
            "Events not applied, in the whole outbox, as of a moment ago (pending, retry, held, failed, stopped); the same \
             from every instance",
            inner.backlog.clone(),
        );
        registry.register_with_unit(
            "oldest_pending",
            "Age of the oldest pending event, on the source's clock; 0 if there is none",
            Unit::Seconds,
            inner.oldest_pending.clone(),
        );
        registry.register(
            "breaker_open",
            "1 while this process waits for a database (source, target) and only probes it",
            inner.breaker_open.clone(),
        );
        registry.register(
            "lane_stopped",
            "1 for a lane that cannot go on by itself: its logs have no batch in common; see /readyz",
            inner.lane_stopped.clone(),
        );
        registry.register(
            "degraded",
            "1 while this cause stands in the way, as /readyz of this process tells it",
            inner.degraded.clone(),
        );
        registry.register(
            "alerts",
            "Messages to [alerts] webhook by this process: sent, or failed (tried again)",
            inner.alerts.clone(),
        );
        registry.register(
            "heals",
            "Batches put back because the target had forgotten them (put_back), or settled again because the source had \
             (settled)",
            inner.heals.clone(),
        );
        registry.register(
            "ghosts_ended",
            "Sessions ended, on source or target, that held a lane beyond the deadline",
            inner.ghosts_ended.clone(),
        );
        registry.register(
            "retention_deleted",
            "Processed and skipped events deleted by this process",
            inner.retention_deleted.clone(),
        );
        registry.register(
            "backfill_rows",
            "Rows of an entity that its first copy has written, whoever made it; the same from every instance",
            inner.copied.clone(),
        );
        registry.register(
            "backfill_left_rows",
            "Rows that a first copy has left out (refused, or pending or waiting behind their events)",
            inner.left.clone(),
        );
        registry.register(
            "backfill_remaining_rows",
            "Rows that a first copy has still to write, about; 0 once it has ended",
            inner.remaining.clone(),
        );
        registry.register_with_unit(
            "verify_finished_timestamp",
            "When the last full verification of an entity ended, whoever made it, on the new database's clock",
            Unit::Seconds,
            inner.verified_at.clone(),
        );
        registry.register_with_unit(
            "verify_last_duration",
            "How long that took",
            Unit::Seconds,
            inner.verified_in.clone(),
        );
        registry.register(
            "verify_rows",
            "Rows that the mapping yielded and that were compared by it",
            inner.verified_rows.clone(),
        );
        registry.register(
            "verify_differences",
            "What it found (missing_in_new, missing_in_legacy, differs, refused); could_not: 1 if not everything could be compared",
            inner.differences.clone(),
        );
        registry.register(
            "repaired_rows",
            "Rows that repair and resync ever changed (write, delete), whoever ran them",
            inner.repaired.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections to the admin API that were refused because too many were open",
            inner.connections_refused.clone(),
        );
        registry.register(
            "failed_logins",
            "Tokens presented in vain, in a header or at the sign-in: unknown, or not looked at because there were too many (limited)",
            inner.failed_logins.clone(),
        );
        for why in ["unknown", "limited"] {
            inner.failed_logins.get_or_create(&OfLogin { why }).inc_by(0);
        }
        // So that a rate is known from the first one on.
        for what in ["source", "target"] {
            inner.breaker_open.get_or_create(&OfBreaker { what: what.to_owned() }).set(0);
            inner.ghosts_ended.get_or_create(&OfSide { side: what.to_owned() }).inc_by(0);
        }
        for cause in CAUSES {
            inner.degraded.get_or_create(&OfCause { cause }).set(0);
        }
        for result in ["sent", "failed"] {
            inner.alerts.get_or_create(&OfResult { result }).inc_by(0);
        }
        for kind in ["put_back", "settled"] {
            inner.heals.get_or_create(&OfKind { kind: kind.to_owned() }).inc_by(0);
        }
        Metrics(Arc::new(Inner { registry: Mutex::new(registry), ..inner }))
    }
}

/// Buckets of [`Reading::lags`].
const LAG_BUCKETS: usize = 48;
/// The first one's upper bound, in seconds; each next one's is half as much again.
const LAG_FIRST: f64 = 0.001;
const LAG_GROWTH: f64 = 1.5;

/// What this process has done since it began, for the page's history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Events applied.
    pub processed: u64,
    /// Of these, by how late they were: see [`quantile`].
    pub lags: Vec<u64>,
    /// Batches by lane.
    pub batches: Vec<u64>,
}

impl Reading {
    /// What was done after `before`.
    pub fn since(&self, before: &Reading) -> Reading {
        let less = |now: &[u64], before: &[u64]| {
            let before = before.iter().copied().chain(std::iter::repeat(0));
            now.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect()
        };
        Reading {
            processed: self.processed.saturating_sub(before.processed),
            lags: less(&self.lags, &before.lags),
            batches: less(&self.batches, &before.batches),
        }
    }
}

/// The bucket of a lag in seconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is bounded")]
fn lag_bucket(seconds: f64) -> usize {
    let steps = (seconds / LAG_FIRST).max(1.0).log(LAG_GROWTH).ceil();
    (steps as usize).min(LAG_BUCKETS - 1)
}

/// Seconds that this share of the lags does not exceed; `None` if there are none. As exact as the buckets: within a quarter.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn quantile(lags: &[u64], share: f64) -> Option<f64> {
    let all: u64 = lags.iter().sum();
    let wanted = (all as f64 * share).max(1.0);
    let mut seen = 0.0;
    for (bucket, n) in lags.iter().enumerate().filter(|(_, n)| **n > 0) {
        let within = ((wanted - seen) / *n as f64).clamp(0.0, 1.0);
        seen += *n as f64;
        if seen >= wanted {
            let exponent = f64::from(u32::try_from(bucket).unwrap_or_default()) - 1.0 + within;
            return Some(LAG_FIRST * LAG_GROWTH.powf(exponent));
        }
    }
    None
}

impl Metrics {
    /// What this process has done since it began.
    pub fn reading(&self) -> Reading {
        let batches = self.0.batches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Reading {
            processed: self.0.processed.load(Ordering::Relaxed),
            lags: self.0.lags.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            batches,
        }
    }

    /// A batch was settled, `took` after its lane was locked.
    pub fn batch_settled(&self, lane: Lane, took: Duration) {
        self.0.batch_duration.observe(took.as_secs_f64());
        self.0.lane_batches.get_or_create(&OfLane { lane: lane.0 }).inc();
        let lane = usize::try_from(lane.0).unwrap_or_default();
        let mut batches = self.0.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.len() <= lane {
            batches.resize(lane + 1, 0);
        }
        batches[lane] += 1;
    }

    /// What became of `n` events of a type.
    pub fn events(&self, disposition: &str, aggregate_type: &str, n: u64) {
        let aggregate_type = self.bounded(aggregate_type);
        self.0.events.get_or_create(&OfEvents { disposition: disposition.to_owned(), aggregate_type }).inc_by(n);
    }

    /// An event was settled this many seconds after its `created_at`, on the source's clock.
    pub fn lag(&self, seconds: f64) {
        self.0.lag.observe(seconds.max(0.0));
        self.0.processed.fetch_add(1, Ordering::Relaxed);
        self.0.lags[lag_bucket(seconds)].fetch_add(1, Ordering::Relaxed);
    }

    /// One batch was healed; `put_back` or `settled`.
    pub fn healed(&self, kind: &str) {
        self.0.heals.get_or_create(&OfKind { kind: kind.to_owned() }).inc();
    }

    /// A connection to the admin API was refused, for there were too many.
    pub fn connection_refused(&self) {
        self.0.connections_refused.inc();
    }

    /// A token was presented in vain; `unknown` or `limited`.
    pub fn failed_login(&self, why: &'static str) {
        self.0.failed_logins.get_or_create(&OfLogin { why }).inc();
    }

    /// A session that held a lane beyond the deadline was ended; `source` or `target`.
    pub fn ghost_ended(&self, side: &str) {
        self.0.ghosts_ended.get_or_create(&OfSide { side: side.to_owned() }).inc();
    }

    /// Whether one of the databases is waited for; `source` or `target`.
    pub fn breaker(&self, what: &str, open: bool) {
        self.0.breaker_open.get_or_create(&OfBreaker { what: what.to_owned() }).set(open.into());
    }

    /// The lanes that cannot go on by themselves; all others can.
    pub fn stopped_lanes(&self, lanes: impl IntoIterator<Item = Lane>) {
        let _no_scrape = self.registry();
        self.0.lane_stopped.clear();
        for lane in lanes {
            self.0.lane_stopped.get_or_create(&OfLane { lane: lane.0 }).set(1);
        }
    }

    /// The causes that stand in the way; all others do not.
    pub(crate) fn degraded(&self, causes: impl IntoIterator<Item = &'static str>) {
        let _no_scrape = self.registry();
        let standing: HashSet<&str> = causes.into_iter().collect();
        for cause in CAUSES {
            self.0.degraded.get_or_create(&OfCause { cause }).set(standing.contains(cause).into());
        }
    }

    /// An alert was sent, or could not be.
    pub(crate) fn alert(&self, sent: bool) {
        let result = if sent { "sent" } else { "failed" };
        self.0.alerts.get_or_create(&OfResult { result }).inc();
    }

    /// The whole backlog, as (aggregate type, status, events), in place of what was told before.
    pub fn backlog<'a>(
        &self,
        counts: impl IntoIterator<Item = (&'a str, &'a str, u64)>,
        oldest_pending: Option<Duration>,
    ) {
        let mut sums: BTreeMap<(String, &str), u64> = BTreeMap::new();
        for (aggregate_type, status, n) in counts {
            *sums.entry((self.bounded(aggregate_type), status)).or_default() += n;
        }
        let _no_scrape = self.registry();
        self.0.backlog.clear();
        for ((aggregate_type, status), n) in sums {
            let labels = OfBacklog { aggregate_type, status: status.to_owned() };
            self.0.backlog.get_or_create(&labels).set(i64::try_from(n).unwrap_or(i64::MAX));
        }
        self.0.oldest_pending.set(oldest_pending.unwrap_or_default().as_secs_f64());
    }

    /// How far an entity's first copy has come: rows, and those left out because refused, pending, waiting.
    pub fn copied(&self, entity: &str, rows: i64, left: [(&'static str, i64); 3]) {
        self.0.copied.get_or_create(&OfCopy { entity: entity.to_owned() }).set(rows);
        for (reason, rows) in left {
            self.0.left.get_or_create(&OfLeft { entity: entity.to_owned(), reason }).set(rows);
        }
    }

    /// Rows that an entity's first copy has still to write.
    pub fn copy_remains(&self, entity: &str, rows: i64) {
        self.0.remaining.get_or_create(&OfCopy { entity: entity.to_owned() }).set(rows);
    }

    /// What the last full verification of an entity found: when (seconds since 1970), in how many seconds, of how many rows, by kind.
    pub fn verified(&self, entity: &str, at: f64, seconds: f64, rows: u64, found: [(&'static str, u64); 5]) {
        let of = OfCopy { entity: entity.to_owned() };
        self.0.verified_at.get_or_create(&of).set(at);
        self.0.verified_in.get_or_create(&of).set(seconds);
        self.0.verified_rows.get_or_create(&of).set(rows.cast_signed());
        for (kind, n) in found {
            self.0.differences.get_or_create(&OfFound { entity: entity.to_owned(), kind }).set(n.cast_signed());
        }
    }

    /// Rows of an entity that were ever written and deleted by repairs.
    pub fn repaired(&self, entity: &str, written: i64, deleted: i64) {
        for (action, rows) in [("write", written), ("delete", deleted)] {
            self.0.repaired.get_or_create(&OfRepair { entity: entity.to_owned(), action }).set(rows);
        }
    }

    /// Retention deleted so many events.
    pub fn retention_deleted(&self, n: u64) {
        self.0.retention_deleted.inc_by(n);
    }

    /// Everything, as [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Only a writer that fails makes this fail; a string does not.
        let _ = text::encode(&mut text, &self.registry());
        text
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bounded(&self, aggregate_type: &str) -> String {
        let mut types = self.0.types.lock().unwrap_or_else(PoisonError::into_inner);
        if types.contains(aggregate_type) || (types.len() < TYPES && types.insert(aggregate_type.to_owned())) {
            aggregate_type.to_owned()
        } else {
            OTHER.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_contract() {
        let metrics = Metrics::default();
        metrics.batch_settled(Lane(3), Duration::from_millis(4));
        metrics.events("processed", "User", 5);
        metrics.lag(0.3);
        metrics.healed("put_back");
        metrics.breaker("target", true);
        metrics.stopped_lanes([Lane(2)]);
        metrics.degraded(["paused"]);
        metrics.alert(true);
        metrics.backlog([("User", "pending", 7), ("Order", "held", 1)], Some(Duration::from_millis(1500)));
        metrics.retention_deleted(9);
        metrics.ghost_ended("source");
        let text = metrics.encode();
        for line in [
            concat!("outbox_relay_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "outbox_relay_events_total{disposition=\"processed\",aggregate_type=\"User\"} 5",
            "outbox_relay_batch_duration_seconds_bucket{le=\"0.005\"} 1",
            "outbox_relay_lane_batches_total{lane=\"3\"} 1",
            "outbox_relay_lag_seconds_bucket{le=\"0.25\"} 0",
            "outbox_relay_lag_seconds_bucket{le=\"0.5\"} 1",
            "outbox_relay_backlog{aggregate_type=\"User\",status=\"pending\"} 7",
            "outbox_relay_oldest_pending_seconds 1.5",
            "outbox_relay_breaker_open{what=\"target\"} 1",
            "outbox_relay_breaker_open{what=\"source\"} 0",
            "outbox_relay_lane_stopped{lane=\"2\"} 1",
            "outbox_relay_degraded{cause=\"paused\"} 1",
            "outbox_relay_degraded{cause=\"breaker_open\"} 0",
            "outbox_relay_alerts_total{result=\"sent\"} 1",
            "outbox_relay_heals_total{kind=\"put_back\"} 1",
            "outbox_relay_ghosts_ended_total{side=\"source\"} 1",
            "outbox_relay_retention_deleted_total 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn a_reading_counts_what_was_done_since_the_last_one() {
        let metrics = Metrics::default();
        metrics.batch_settled(Lane(2), Duration::from_millis(4));
        metrics.lag(0.3);
        let before = metrics.reading();
        metrics.lag(30.0);
        metrics.lag(-1.0);
        metrics.batch_settled(Lane(0), Duration::from_millis(4));
        let done = metrics.reading().since(&before);
        assert_eq!((done.processed, done.batches.as_slice()), (2, &[1, 0, 0][..]));
        assert_eq!(done.lags.iter().sum::<u64>(), 2);
    }

    #[test]
    fn quantiles_are_as_exact_as_their_buckets() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[0; 9], 0.5), None);
        for lag in [0.0001, 0.001, 0.012, 0.3, 2.0, 60.0, 3600.0, 86_400.0] {
            let mut lags = vec![0; LAG_BUCKETS];
            lags[lag_bucket(lag)] = 100;
            for share in [0.01, 0.5, 0.99] {
                let found = quantile(&lags, share).unwrap_or_default();
                assert!(found <= f64::max(lag, LAG_FIRST) * 1.51 && found >= lag.min(1e5) / 1.51, "{lag}: {found}");
            }
        }
        let mut lags = vec![0; LAG_BUCKETS];
        (lags[3], lags[20]) = (98, 2);
        assert!(quantile(&lags, 0.5) < Some(0.01) && quantile(&lags, 0.99) > Some(1.0));
        assert_eq!(lag_bucket(f64::MAX), LAG_BUCKETS - 1);
    }

    #[test]
    fn a_backlog_replaces_the_one_before() {
        let metrics = Metrics::default();
        metrics.backlog([("User", "pending", 7)], Some(Duration::from_secs(1)));
        metrics.backlog([("Order", "failed", 2)], None);
        let text = metrics.encode();
        assert!(!text.contains("\"User\""), "{text}");
        assert!(text.contains("outbox_relay_oldest_pending_seconds 0"), "{text}");
    }

    #[test]
    fn whatever_types_the_application_invents_the_series_stay_bounded() {
        let metrics = Metrics::default();
        let kinds: Vec<String> = (0..1000).map(|n| format!("Type{n}")).collect();
        metrics.backlog(kinds.iter().map(|kind| (kind.as_str(), "pending", 1)), None);
        kinds.iter().for_each(|kind| metrics.events("processed", kind, 1));
        let text = metrics.encode();
        assert!(text.contains("outbox_relay_backlog{aggregate_type=\"other\",status=\"pending\"} 900"), "{text}");
        assert_eq!(text.matches("outbox_relay_events_total{").count(), TYPES + 1);
    }
}
