//! Tokens that are not known: how many tries there are, and what is said of them.
//!
//! Guarantees: one address has [`TRIES`] wrong tokens at once and [`REFILL`] between any more, all together [`TRIES_OF_ALL`] and
//! [`REFILL_OF_ALL`]; beyond that a token is not even looked at, right or wrong, so that no answer tells which it was. Who has
//! presented no wrong token is never affected: strangers lock nobody out from elsewhere. The same wrong token again is no new guess, so
//! a forgotten script with an old token locks out nobody beside it. Memory is bounded, and the log gets one line a minute.
//!
//! Written here rather than taken from `governor`: what counts is known only after the comparison, and a right token takes nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::seats::group;
use crate::metrics::Metrics;

/// Wrong tokens that an address may present at once.
const TRIES: u32 = 20;
/// Until it may present one more.
const REFILL: Duration = Duration::from_secs(6);
/// The same for all addresses together.
const TRIES_OF_ALL: u32 = 500;
const REFILL_OF_ALL: Duration = Duration::from_millis(200);
/// Addresses remembered; of more, the one that tried longest ago is forgotten.
const ADDRESSES: usize = 4096;
/// Wrong tokens remembered of an address, to know them again.
const REMEMBERED: usize = 16;
/// Between two lines in the log.
const QUIET: Duration = Duration::from_secs(60);

/// What becomes of a token that somebody presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is known.
    Right,
    /// It is not.
    Wrong,
    /// It was not looked at: again after this long.
    NotNow(Duration),
}

/// All that was presented in vain.
#[derive(Default)]
pub(super) struct Guesses {
    hasher: RandomState,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    all: Spent,
    by_address: HashMap<IpAddr, Address>,
    told: Option<Instant>,
    since_told: u64,
}

#[derive(Default)]
struct Address {
    spent: Spent,
    wrong: Vec<u64>,
    oldest: usize,
}

/// Tries that have not been given back yet, as the time until all are.
#[derive(Debug, Clone, Copy, Default)]
struct Spent(Option<Instant>);

impl Spent {
    /// Until all of it is given back.
    fn left(self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// How long until a try is there; `None`: there is one.
    fn lacks(self, now: Instant, tries: u32, refill: Duration) -> Option<Duration> {
        let over = (self.left(now) + refill).saturating_sub(refill * tries);
        (!over.is_zero()).then_some(over)
    }

    fn spend(&mut self, now: Instant, refill: Duration) {
        self.0 = Some(now + self.left(now) + refill);
    }
}

impl Guesses {
    /// What becomes of this secret, of which the caller knows whether it is a token's.
    pub(super) fn judge(&self, from: IpAddr, secret: &str, is_known: bool, metrics: &Metrics) -> Verdict {
        let secret = self.hasher.hash_one(secret);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let verdict = seen.judge(group(from), secret, is_known, now);
        match verdict {
            Verdict::Right => {}
            Verdict::Wrong => metrics.failed_login("unknown"),
            Verdict::NotNow(_) => metrics.failed_login("limited"),
        }
        if verdict != Verdict::Right
            && let Some(refused) = seen.line_due(now)
        {
            tracing::warn!(peer = %from, refused, "tokens that are not known are presented to the admin API");
        }
        verdict
    }
}

impl Seen {
    fn judge(&mut self, from: IpAddr, secret: u64, is_known: bool, now: Instant) -> Verdict {
        let address = self.by_address.get(&from);
        let used = address.is_some_and(|address| !address.spent.left(now).is_zero());
        let lacks_one = address.and_then(|address| address.spent.lacks(now, TRIES, REFILL));
        let all_lack_one = self.all.lacks(now, TRIES_OF_ALL, REFILL_OF_ALL);
        if is_known {
            return match lacks_one.or(all_lack_one.filter(|_| used)) {
                Some(wait) => Verdict::NotNow(wait),
                None => Verdict::Right,
            };
        }
        if address.is_some_and(|address| address.wrong.contains(&secret)) {
            return Verdict::Wrong;
        }
        if let Some(wait) = lacks_one {
            return Verdict::NotNow(wait);
        }
        self.forget_one_for(from, now);
        let address = self.by_address.entry(from).or_default();
        address.spent.spend(now, REFILL);
        if let Some(wait) = all_lack_one {
            return Verdict::NotNow(wait);
        }
        address.remember(secret);
        self.all.spend(now, REFILL_OF_ALL);
        Verdict::Wrong
    }

    /// Makes room for an address.
    fn forget_one_for(&mut self, from: IpAddr, now: Instant) {
        if self.by_address.len() < ADDRESSES || self.by_address.contains_key(&from) {
            return;
        }
        self.by_address.retain(|_, address| !address.spent.left(now).is_zero());
        let first = self.by_address.iter().min_by_key(|(_, address)| address.spent.left(now)).map(|(of, _)| *of);
        if self.by_address.len() >= ADDRESSES
            && let Some(first) = first
        {
            self.by_address.remove(&first);
        }
    }

    /// How many there were since the last line, if there is to be another.
    fn line_due(&mut self, now: Instant) -> Option<u64> {
        self.since_told += 1;
        if self.told.is_some_and(|last| now.duration_since(last) < QUIET) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.since_told))
    }
}

impl Address {
    fn remember(&mut self, secret: u64) {
        if self.wrong.len() < REMEMBERED {
            self.wrong.push(secret);
        } else {
            self.wrong[self.oldest] = secret;
            self.oldest = (self.oldest + 1) % REMEMBERED;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn an_address_has_a_few_tries_and_then_one_now_and_then() {
        let (mut seen, now, me) = (Seen::default(), Instant::now(), address(1));
        for n in 0..u64::from(TRIES) {
            assert_eq!(seen.judge(me, n, false, now), Verdict::Wrong, "{n}");
        }
        assert_eq!(seen.judge(me, 100, false, now), Verdict::NotNow(REFILL));
        assert_eq!(seen.judge(me, 101, true, now), Verdict::NotNow(REFILL), "nobody learns that it was right");
        let later = now + REFILL;
        assert_eq!(seen.judge(me, 101, true, later), Verdict::Right);
        assert_eq!(seen.judge(me, 102, false, later), Verdict::Wrong);
        assert_eq!(seen.judge(me, 103, false, later), Verdict::NotNow(REFILL));
        assert_eq!(seen.judge(me, 101, true, now + 60 * REFILL), Verdict::Right);
    }

    #[test]
    fn strangers_lock_nobody_out() {
        let (mut seen, now, me) = (Seen::default(), Instant::now(), address(1));
        let mut guess = 0;
        for stranger in 0..100 {
            for _ in 0..TRIES + 5 {
                guess += 1;
                seen.judge(address(1000 + stranger), guess, false, now);
            }
        }
        assert!(seen.all.lacks(now, TRIES_OF_ALL, REFILL_OF_ALL).is_some(), "all tries are spent");
        assert_eq!(seen.judge(me, 1, true, now), Verdict::Right);
        assert!(matches!(seen.judge(me, 2, false, now), Verdict::NotNow(_)), "but a wrong one is one too many");
        assert!(matches!(seen.judge(me, 1, true, now), Verdict::NotNow(_)), "and until it is given back, no more");
        assert_eq!(seen.judge(me, 1, true, now + REFILL), Verdict::Right);
    }

    #[test]
    fn the_same_wrong_token_again_is_no_new_guess() {
        let (mut seen, now, me) = (Seen::default(), Instant::now(), address(1));
        for n in 0..10_000 {
            assert_eq!(seen.judge(me, n % 2, false, now), Verdict::Wrong);
        }
        assert_eq!(seen.judge(me, 9, true, now), Verdict::Right);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_who_tried_last_is_not_forgotten() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        for n in 0..3 * 4096 {
            let now = now + REFILL_OF_ALL * n;
            seen.judge(address(n), u64::from(n), false, now);
            seen.judge(address(n), u64::from(n) + 1, false, now);
            assert!(seen.by_address.len() <= ADDRESSES);
        }
        assert!(seen.by_address.contains_key(&address(3 * 4096 - 1)));
        let mut one = Address::default();
        (0..1000).for_each(|n| one.remember(n));
        assert!(one.wrong.len() == REMEMBERED && one.wrong.contains(&999));
    }

    #[test]
    fn a_burst_is_one_line_in_the_log() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        assert_eq!(seen.line_due(now), Some(1));
        for n in 0..500 {
            assert_eq!(seen.line_due(now + Duration::from_millis(n * 100)), None);
        }
        assert_eq!(seen.line_due(now + QUIET), Some(501));
    }
}
