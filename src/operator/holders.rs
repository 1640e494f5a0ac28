//! Who holds lanes just now.

use sqlx::Row as _;

use super::Operator;
use crate::event::Lane;
use crate::session::{Limits, ask};
use crate::sql::query;

/// A lane that is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// Which.
    pub lane: Lane,
    /// The session on the legacy database.
    pub pid: i32,
    /// From where it is connected; a pooler's address, if there is one.
    pub client: String,
    /// Since when.
    pub seconds: f64,
}

impl Operator {
    /// Every lane that some process holds at this moment, in order. A batch takes milliseconds, so most looks see few.
    pub async fn lane_holders(&self) -> super::Result<Vec<Holder>> {
        let limits = Limits { deadline: std::time::Duration::from_secs(2), lock: std::time::Duration::from_secs(1) };
        let sql = self.names().render(include_str!("../../sql/operator/lane_holders.sql"));
        let rows = ask(self.pool(), limits, "", query(&sql, false)).await?;
        let holder = |row: &sqlx::postgres::PgRow| {
            Ok(Holder {
                lane: row.try_get("lane")?,
                pid: row.try_get("pid")?,
                client: row.try_get("client")?,
                seconds: row.try_get("seconds")?,
            })
        };
        Ok(rows.iter().map(holder).collect::<sqlx::Result<_>>()?)
    }
}
