//! Stub until the real one lands.
use crate::event::Lane;
use std::time::Duration;
#[derive(Clone, Default)]
pub struct Metrics;
impl Metrics {
    pub fn healed(&self, _kind: &str) {}
    pub fn batch_settled(&self, _lane: Lane, _took: Duration) {}
    pub fn events(&self, _status: &str, _kind: &str, _n: u64) {}
    pub fn lag(&self, _seconds: f64) {}
    pub fn retention_deleted(&self, _n: u64) {}
    pub fn ghost_ended(&self, _side: &str) {}
}
