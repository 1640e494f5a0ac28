//! Which rows a resync is about.

use chrono::{DateTime, Utc};

use super::Repair;
use crate::config::{Entity, LegacyRows};
use crate::source::RowKey;
use crate::verify::VerifyError;

/// Which rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// These legacy keys.
    Keys(Vec<RowKey>),
    /// The rows of all aggregates that had an event in a span of time, as the outbox and the target's log know them.
    Since(Since),
    /// The rows of divergent aggregates.
    Divergent,
}

/// A key that is of another number of parts than these rows': it is no row's, and would be resynced without a word.
pub fn odd_key<'k>(rows: &LegacyRows, keys: &'k [RowKey]) -> Option<&'k RowKey> {
    keys.iter().find(|key| key.0.len() != rows.key.len())
}

/// A span of time, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// From.
    pub since: DateTime<Utc>,
    /// To; `None`: until now.
    pub until: Option<DateTime<Utc>>,
}

impl Repair<'_> {
    /// The aggregates of an entity's type that had an event written or applied in that time. Either side may have forgotten some.
    pub(super) async fn aggregates_since(&self, entity: &Entity, of: &Since) -> Result<Vec<String>, VerifyError> {
        let until = of.until.unwrap_or_else(|| Utc::now() + chrono::Duration::days(1));
        let kind = &entity.aggregate_type;
        let written = self.source.aggregates_between(kind, of.since, until, self.stop).await;
        let mut ids = written.map_err(VerifyError::Source)?.ok_or(VerifyError::Stopped)?;
        ids.extend(self.target.aggregates_between(kind, of.since, until).await.map_err(VerifyError::Target)?);
        Ok(ids.into_iter().collect())
    }
}
