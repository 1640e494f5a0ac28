//! What goes wrong in the demo, for real, and how it is mended: when, and by whom.

pub(super) mod failure;
pub(super) mod migration;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::PgPool;

use super::folder::Folder;
use super::screen::{Screen, Tone};
use crate::relay::Shared;

/// When things happen, from the start of the monolith.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timetable {
    /// The first event that the new database refuses.
    pub(super) first_failure: Duration,
    /// And the next ones.
    pub(super) failure_every: Duration,
    /// A column of the new database gets another name.
    pub(super) migration: Duration,
    /// How long people may look at what is wrong before the demo mends it; `None`: people mend it.
    pub(super) patience: Option<Duration>,
}

impl Timetable {
    /// A demo that ends after `ends` mends everything by itself, in time.
    pub(super) fn new(ends: Option<Duration>) -> Timetable {
        let whole = Duration::from_secs(24);
        let scale = ends.map_or(1.0, |ends| ends.as_secs_f64() / whole.as_secs_f64()).min(1.0);
        let at = |seconds: u64| Duration::from_secs(seconds).mul_f64(scale);
        Timetable {
            first_failure: at(5),
            failure_every: Duration::from_secs(20),
            migration: at(12),
            patience: ends.map(|_| at(5)),
        }
    }
}

/// How long a beat waits for the new database, which may be down or frozen; the next one asks again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// What every part of the story needs.
pub(super) struct Scene<'a, W> {
    pub(super) shared: &'a Shared,
    pub(super) legacy: &'a PgPool,
    pub(super) new: &'a PgPool,
    pub(super) folder: &'a Folder,
    pub(super) admin: SocketAddr,
    pub(super) screen: &'a mut Screen<W>,
    /// Since the start of the monolith.
    pub(super) now: Duration,
    /// See [`Timetable::patience`].
    pub(super) patience: Option<Duration>,
}

impl<W: Write> Scene<'_, W> {
    /// Whether what is seen since then may be mended by the demo itself.
    fn is_up_to_the_demo(&self, since: Duration) -> bool {
        self.patience.is_some_and(|patience| self.now >= since + patience)
    }

    /// Why the demo steps in, or that it won't.
    fn who_mends(&self) -> String {
        match self.patience {
            Some(_) => self.screen.tone(Tone::Faint, "  The demo does this by itself in a few seconds."),
            None => self.screen.tone(Tone::Faint, "  This is up to you; there is no hurry."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_goes_wrong_is_mended_before_the_demo_ends() {
        let long = Timetable::new(None);
        assert_eq!((long.first_failure.as_secs(), long.migration.as_secs(), long.patience), (5, 12, None));
        assert_eq!(Timetable::new(Some(Duration::from_secs(60))).first_failure, long.first_failure);
        for seconds in [1, 8, 12, 30] {
            let ends = Duration::from_secs(seconds);
            let it = Timetable::new(Some(ends));
            assert!(it.migration + it.patience.unwrap() < ends && it.first_failure < it.migration, "{it:?}");
        }
    }
}
