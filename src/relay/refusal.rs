//! What becomes of an event that was refused by itself, or that waits behind one. Pure, but for the jitter.
//!
//! Guarantees: an attempt is counted only when the event is to blame (or has waited too long for another row), and the same
//! cause has the same name after a restart.

use crate::disposition::{Disposition, Said};
use crate::event::{Event, Status};
use crate::source::{FailureRecord, Unapplied};

/// What became of each event, by its index in the batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Took effect, with the commit.
    Applied,
    /// Retry, held or failed.
    Unapplied(Box<Unapplied>),
    /// Stays as it was: its aggregate type is stopped.
    Left,
}

/// An event behind one that waits.
pub(super) fn held(event: &Event, why: Option<String>) -> Box<Unapplied> {
    Box::new(Unapplied {
        id: event.id,
        status: Status::Held,
        attempts: event.attempts,
        delay: None,
        error: why,
        failure: None,
    })
}

/// What becomes of an event that failed by itself.
pub(super) fn decide(
    event: &Event,
    disposition: Disposition,
    record: FailureRecord,
    retry: &crate::config::Retry,
) -> Unapplied {
    let waited = event.failing_for.unwrap_or_default();
    let counts = match disposition {
        Disposition::Waiting => waited >= retry.patience,
        Disposition::Contended => false,
        _ => true,
    };
    let attempts = event.attempts + i32::from(counts);
    let failed = counts && attempts.unsigned_abs() >= retry.attempts;
    let delay = if counts {
        crate::retry::pause_after(attempts.unsigned_abs(), retry)
    } else {
        // Soon at first, then ever more rarely: half of the time that it has waited.
        (waited / 2).clamp(std::time::Duration::from_millis(100), std::time::Duration::from_secs(5))
    };
    Unapplied {
        id: event.id,
        status: if failed { Status::Failed } else { Status::Retry },
        attempts,
        delay: (!failed).then_some(delay),
        error: Some(one_line(&record)),
        failure: Some(record),
    }
}

/// `last_error`: SQLSTATE, message, constraint or column, file and line.
fn one_line(record: &FailureRecord) -> String {
    let mut line = format!("{}: {}", record.code, record.message.replace('\n', " "));
    if let Some(constraint) = &record.constraint {
        line.push_str(&format!(" (constraint {constraint})"));
    } else if let Some(column) = &record.column {
        line.push_str(&format!(" (column {column})"));
    }
    if let Some(place) = &record.place {
        line.push_str(&format!(" at {place}"));
    }
    line
}

/// Names a cause by what its failures share, the same after a restart: FNV-1a over entity, code, constraint, column and, where
/// neither is named, the message without its values.
pub(super) fn cause(entity: &str, said: &Said) -> String {
    let message =
        if said.constraint.is_none() && said.column.is_none() { pattern(&said.message) } else { String::new() };
    let parts =
        [entity, &said.code, said.constraint.as_deref().unwrap_or(""), said.column.as_deref().unwrap_or(""), &message];
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.join("\u{1f}").bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// A message without what is quoted in it and without numbers.
fn pattern(message: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    for c in message.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                out.push(c);
            }
            _ if quoted => {}
            c if c.is_ascii_digit() => {
                if !out.ends_with('0') {
                    out.push('0');
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::Aggregate;

    fn said(message: &str) -> Said {
        Said {
            code: "22P02".into(),
            message: message.into(),
            constraint: None,
            column: None,
            detail: None,
            position: None,
        }
    }

    #[test]
    fn a_cause_is_the_same_whatever_the_value() {
        let one = cause("users", &said("invalid input syntax for type integer: \"abc\""));
        assert_eq!(one, cause("users", &said("invalid input syntax for type integer: \"12x\"")));
        assert_ne!(one, cause("users", &said("invalid input syntax for type date: \"abc\"")));
        assert_ne!(one, cause("orders", &said("invalid input syntax for type integer: \"abc\"")));
    }

    #[test]
    fn attempts_count_only_when_the_event_is_to_blame() {
        let retry = crate::config::Retry {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
            attempts: 3,
            patience: Duration::from_secs(600),
        };
        let record = FailureRecord {
            entity: "users".into(),
            aggregate_type: "User".into(),
            cause: "c".into(),
            disposition: "event",
            code: "22P02".into(),
            message: "no".into(),
            constraint: None,
            column: None,
            detail: None,
            place: None,
        };
        let (short, long) = (Some(Duration::from_secs(4)), Some(Duration::from_secs(700)));
        for (disposition, attempts, since, expected) in [
            (Disposition::Event, 0, None, (Status::Retry, 1)),
            (Disposition::Event, 2, short, (Status::Failed, 3)),
            (Disposition::Waiting, 0, None, (Status::Retry, 0)),
            (Disposition::Waiting, 0, short, (Status::Retry, 0)),
            (Disposition::Waiting, 0, long, (Status::Retry, 1)),
            (Disposition::Waiting, 2, long, (Status::Failed, 3)),
            (Disposition::Contended, 2, long, (Status::Retry, 2)),
        ] {
            let aggregate = Aggregate { kind: "User".into(), id: "1".into() };
            let event = Event {
                attempts,
                failing_for: since,
                was: Status::Retry,
                ..Event::made_up(aggregate, "UserCreated", "{}".into())
            };
            let unapplied = decide(&event, disposition, record.clone(), &retry);
            assert_eq!((unapplied.status, unapplied.attempts), expected, "{disposition} {attempts} {since:?}");
            assert_eq!(unapplied.delay.is_some(), unapplied.status == Status::Retry);
        }
    }
}
