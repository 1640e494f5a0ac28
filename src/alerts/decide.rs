//! When an alert begins, goes on, and is over: pure.
//!
//! Guarantees: nothing is told before it has held for a while, nor that it is over before no process has seen it for a while; what
//! lies between the two thresholds begins nothing and ends nothing; what is not known changes nothing.

use std::time::Duration;

use crate::config::Alerts;
use crate::operator::alerts::{Telling, Told};

/// How this process sees one thing that may be an alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Seen {
    /// Over the threshold: how bad it is.
    Over(f64),
    /// Below it, but not yet well below.
    Between(f64),
    Under,
    /// It cannot be known just now.
    Unknown,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Say to the other processes that it goes on.
    Note,
    Tell(Telling),
    /// Somebody was about to tell it, and it is over.
    Forget,
}

/// Told again when it has become so many times as bad.
const WORSE: f64 = 10.0;

/// How often one process says to the others that it goes on.
pub(super) fn note_every(rules: &Alerts) -> Duration {
    (rules.recovery / 4).min(Duration::from_secs(5))
}

/// `held`: for how long this process has seen it over the threshold. `told`: what all processes together have told.
pub(super) fn decide(seen: Seen, held: Duration, told: Option<&Told>, rules: &Alerts) -> Step {
    let Some(told) = told.filter(|told| told.firing || !matches!(seen, Seen::Over(_))) else {
        let begins = matches!(seen, Seen::Over(_)) && held >= rules.after;
        return if begins { Step::Tell(Telling::Begin) } else { Step::Nothing };
    };
    if !told.firing {
        return if seen == Seen::Under && told.seen_ago >= rules.recovery { Step::Forget } else { Step::Nothing };
    }
    let note = if told.seen_ago >= note_every(rules) { Step::Note } else { Step::Nothing };
    match seen {
        Seen::Over(value) => {
            let repeats = !rules.repeat.is_zero() && told.told_ago >= rules.repeat;
            let worse = told.value >= 1.0 && value >= told.value * WORSE && told.told_ago >= rules.after;
            if repeats || worse { Step::Tell(Telling::Again) } else { note }
        }
        Seen::Between(_) | Seen::Unknown => note,
        Seen::Under if told.seen_ago >= rules.recovery => Step::Tell(Telling::Over),
        Seen::Under => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use proptest::prelude::*;

    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn rules() -> Alerts {
        Alerts {
            webhook: None,
            lag: secs(300),
            failures: 1,
            causes: vec![],
            after: secs(60),
            recovery: secs(120),
            repeat: secs(3600),
        }
    }

    fn told(firing: bool, told_ago: u64, seen_ago: u64) -> Told {
        let told = Told::now(Utc::now(), 5.0, Utc::now());
        Told { firing, told_ago: secs(told_ago), seen_ago: secs(seen_ago), ..told }
    }

    #[test]
    fn it_begins_goes_on_and_is_over_each_after_a_while() {
        use Step::{Forget, Note, Nothing, Tell};
        use Telling::{Again, Begin, Over};
        for (seen, held, before, step) in [
            (Seen::Under, 0, None, Nothing),
            (Seen::Unknown, 0, None, Nothing),
            (Seen::Between(0.5), 500, None, Nothing),
            (Seen::Over(1.0), 59, None, Nothing),
            (Seen::Over(1.0), 60, None, Tell(Begin)),
            // Somebody took it and did not tell it: the claim decides whether he has died.
            (Seen::Over(1.0), 60, Some(told(false, 40, 40)), Tell(Begin)),
            (Seen::Under, 0, Some(told(false, 119, 119)), Nothing),
            (Seen::Under, 0, Some(told(false, 120, 120)), Forget),
            (Seen::Over(5.0), 0, Some(told(true, 100, 1)), Nothing),
            (Seen::Over(5.0), 0, Some(told(true, 100, 6)), Note),
            (Seen::Over(49.0), 0, Some(told(true, 100, 6)), Note),
            (Seen::Over(50.0), 0, Some(told(true, 100, 6)), Tell(Again)),
            (Seen::Over(50.0), 0, Some(told(true, 59, 6)), Note),
            (Seen::Over(5.0), 0, Some(told(true, 3600, 1)), Tell(Again)),
            (Seen::Between(1.0), 0, Some(told(true, 9000, 300)), Note),
            (Seen::Unknown, 0, Some(told(true, 9000, 300)), Note),
            (Seen::Under, 0, Some(told(true, 9000, 119)), Nothing),
            (Seen::Under, 0, Some(told(true, 10, 120)), Tell(Over)),
        ] {
            assert_eq!(decide(seen, secs(held), before.as_ref(), &rules()), step, "{seen:?} {held} {before:?}");
        }
        let never = Alerts { repeat: Duration::ZERO, ..rules() };
        assert_eq!(decide(Seen::Over(5.0), secs(9), Some(&told(true, 90_000, 1)), &never), Nothing);
    }

    /// One process, a second a step, against a ledger that does what it is told.
    fn messages(seen: &[Seen]) -> Vec<Telling> {
        let (mut before, mut held, mut sent): (Option<Told>, u64, Vec<Telling>) = (None, 0, vec![]);
        for seen in seen {
            held = if matches!(seen, Seen::Over(_)) { held + 1 } else { 0 };
            if let Some(told) = &mut before {
                told.told_ago += secs(1);
                told.seen_ago += secs(1);
            }
            match decide(*seen, secs(held), before.as_ref(), &rules()) {
                Step::Nothing => {}
                Step::Note => before.iter_mut().for_each(|told| told.seen_ago = Duration::ZERO),
                Step::Forget => before = None,
                Step::Tell(telling) => {
                    sent.push(telling);
                    before = (telling != Telling::Over).then(|| told(true, 0, 0));
                }
            }
        }
        sent
    }

    proptest! {
        #[test]
        fn whatever_happens_each_beginning_is_followed_by_one_end_and_nothing_flaps(
            runs in prop::collection::vec((0..4u8, 1..400usize), 0..40)
        ) {
            let seen: Vec<Seen> = runs.iter().flat_map(|(kind, n)| {
                let seen = [Seen::Under, Seen::Between(3.0), Seen::Over(6.0), Seen::Unknown][usize::from(*kind)];
                std::iter::repeat_n(seen, *n)
            }).collect();
            let sent = messages(&seen);
            // It begins, perhaps goes on, is over, and only then begins again.
            let mut firing = false;
            for telling in &sent {
                prop_assert_eq!(*telling == Telling::Begin, !firing);
                firing = *telling != Telling::Over;
            }
            // No more of them than times when it held for a minute.
            let begun = sent.iter().filter(|t| **t == Telling::Begin).count();
            let mut held = 0;
            let mut long = 0;
            for seen in &seen {
                held = if matches!(seen, Seen::Over(_)) { held + 1 } else { 0 };
                long += usize::from(held == 60);
            }
            prop_assert!(begun <= long, "{begun} of {long}");
        }

        #[test]
        fn what_comes_and_goes_faster_than_the_while_is_never_told(runs in prop::collection::vec((1..59usize, 1..400usize), 0..40)) {
            let seen: Vec<Seen> = runs.iter().flat_map(|(over, under)| {
                std::iter::repeat_n(Seen::Over(9.0), *over).chain(std::iter::repeat_n(Seen::Under, *under))
            }).collect();
            prop_assert_eq!(messages(&seen), vec![]);
        }

        #[test]
        fn what_ends_and_comes_back_within_the_while_is_one_alert(runs in prop::collection::vec((60..300usize, 1..114usize), 1..20)) {
            let seen: Vec<Seen> = runs.iter().flat_map(|(over, under)| {
                std::iter::repeat_n(Seen::Over(9.0), *over).chain(std::iter::repeat_n(Seen::Under, *under))
            }).collect();
            let sent = messages(&seen);
            prop_assert_eq!(sent.iter().filter(|t| **t == Telling::Begin).count(), 1);
            prop_assert!(!sent.contains(&Telling::Over));
        }
    }
}
