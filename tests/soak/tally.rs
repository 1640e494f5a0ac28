//! What was injected, and how often: counted when it has happened, not when it was meant to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by all who inject.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Tally {
    pub fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    pub fn add(&self, what: &'static str, times: usize) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += times as u64;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, n) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            writeln!(f, "{n:>8}  {what}")?;
        }
        Ok(())
    }
}
