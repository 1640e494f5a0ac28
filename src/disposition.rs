//! Whose an error of the target is, decided in this one place by its SQLSTATE; never by its text.

use std::fmt;

use sqlx::postgres::PgDatabaseError;

use crate::source::KeyTrouble;

/// What an error means for the events that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The whole batch again after a pause; no attempt is counted.
    Transient,
    /// As transient at first; when it comes again, only the events that meet it wait.
    Contended,
    /// Another row is on its way: soon again, and the event's own failure only after a configured patience.
    Waiting,
    /// The event's: an attempt is counted.
    Event,
    /// The operator's: the entity stops, loudly, and resumes when it works again.
    Operator,
}

impl Disposition {
    /// The design's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Disposition::Transient => "transient",
            Disposition::Contended => "contended",
            Disposition::Waiting => "waiting",
            Disposition::Event => "event",
            Disposition::Operator => "operator",
        }
    }
}

impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an error is before anything is known of who else meets it.
pub fn of(error: &sqlx::Error) -> Disposition {
    match error {
        sqlx::Error::Database(database) => of_sqlstate(database.code().as_deref().unwrap_or_default()),
        // A value that cannot be sent as a parameter, or an answer that cannot be read: this event's, or ours.
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => Disposition::Event,
        _ if KeyTrouble::of(error).is_some() => Disposition::Operator,
        _ => Disposition::Transient,
    }
}

/// Whether the server was away, busy or restarting, rather than refusing what it was told.
pub fn is_transient(error: &sqlx::Error) -> bool {
    matches!(of(error), Disposition::Transient | Disposition::Contended)
}

/// By SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub fn of_sqlstate(code: &str) -> Disposition {
    use Disposition::{Contended, Event, Operator, Transient, Waiting};
    match code {
        // Lock not available; statement or idle timeout; out of memory.
        "55P03" | "57014" | "53200" | "25P03" | "25P04" => Contended,
        // Foreign key: the parent may be on its way in another lane. Unique and exclusion: the other row may be about to change.
        "23503" | "23505" | "23P01" => Waiting,
        // Too deep, too large: this payload's (54001 comes from nesting, 54000 and 54023 from size).
        "54000" | "54001" | "54011" | "54023" => Event,
        // Connection limit of a database or role is 53300; disk full 53100; configuration limit 53400.
        "53000" | "53100" | "53300" | "53400" => Transient,
        // A stale plan; a read-only server after a switch-over; a transaction that is already broken.
        "0A000" | "25006" | "25P02" | "26000" | "42P05" => Transient,
        // A row's own policy refuses (row-level security) with the code of a missing grant: 42501. Whether it is the
        // operator's shows when nothing at all passes, see the relay's streaks; a missing grant fails with zero events too.
        "42501" => Event,
        // Invalid text, too long, out of range for a key length: raised by values, though in class 42 by some functions.
        "42P22" | "42804" | "42883" | "42P18" | "42846" => Operator,
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "40" | "57" | "58" | "XX" => Transient,
            "22" | "23" | "P0" | "44" | "21" | "38" | "39" => Event,
            "42" | "3D" | "3F" | "28" | "2F" | "0L" | "0P" => Operator,
            _ => Event,
        },
    }
}

/// Whether an error that is transient by its code may yet be of a value, and come with it for ever: whoever writes a type in C and gives an
/// error no code raises XX000 (PostGIS, of a geometry that it cannot read), and 0A000 is not only a stale plan's.
pub fn may_be_of_a_value(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| matches!(code.as_ref(), "XX000" | "0A000"))
}

/// Whether a server's refusal of several rows may be of one of them. Of those but [`Disposition::Event`]'s, that it comes with no row, too, shows
/// that it is not.
pub fn may_be_of_a_row(error: &sqlx::Error) -> bool {
    match of(error) {
        Disposition::Event => true,
        Disposition::Operator => error.as_database_error().is_some(),
        _ => may_be_of_a_value(error),
    }
}

/// What a database error says, without DETAIL in its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// Constraint, if named.
    pub constraint: Option<String>,
    /// Column, if named.
    pub column: Option<String>,
    /// DETAIL: may be personal data.
    pub detail: Option<String>,
    /// Position in the statement, in characters from 1.
    pub position: Option<usize>,
}

/// Takes an error apart.
pub fn said(error: &sqlx::Error) -> Said {
    let postgres = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
    match postgres {
        Some(e) => Said {
            code: e.code().to_owned(),
            message: e.message().to_owned(),
            constraint: e.constraint().map(str::to_owned),
            column: e.column().map(str::to_owned),
            detail: e.detail().map(str::to_owned),
            position: match e.position() {
                Some(sqlx::postgres::PgErrorPosition::Original(at)) => Some(at),
                _ => None,
            },
        },
        None => Said {
            code: "client".to_owned(),
            message: error.to_string(),
            constraint: None,
            column: None,
            detail: None,
            position: None,
        },
    }
}

/// An error in one sentence for people: Postgres' own words and its SQLSTATE, without the lines of anybody's source code.
pub fn told(error: &sqlx::Error) -> String {
    if let Some(refusal) = crate::tls::refusal(error) {
        return refusal.to_string();
    }
    if let Some(trouble) = KeyTrouble::of(error) {
        return trouble.to_string();
    }
    match error {
        sqlx::Error::Database(_) => {
            let said = said(error);
            format!("{} ({})", said.message, said.code)
        }
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::PoolTimedOut => {
            "no connection within 10 s: it does not answer, or all connections are taken".to_owned()
        }
        other => other.to_string(),
    }
}

/// The same for the log: its SQLSTATE, and what of its words cannot be a row's value.
pub fn logged(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(_) => {
            let said = said(error);
            format!("{} ({})", crate::redact::without_values(&said.code, &said.message), said.code)
        }
        _ => KeyTrouble::of(error).map_or_else(|| told(error), KeyTrouble::logged),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_outage_is_never_an_events_failure_and_a_value_never_the_operators(
            outage in "(08|57P|58|40)[0-9A-Z]{2,3}", value in "(22|23)[0-9A-Z]{3}", any in ".{0,6}"
        ) {
            prop_assert!(matches!(of_sqlstate(&outage), Disposition::Transient | Disposition::Contended), "{outage}");
            prop_assert!(matches!(of_sqlstate(&value), Disposition::Event | Disposition::Waiting), "{value}");
            // Whatever a server, an extension or a RAISE makes up, something is decided.
            let _ = of_sqlstate(&any);
        }
    }

    #[test]
    fn what_the_network_said_is_told_as_it_is() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(told(&sqlx::Error::Io(refused)), "connection refused");
        assert!(!told(&sqlx::Error::PoolTimedOut).contains("pool"));
    }

    #[test]
    fn every_class_of_error_has_its_disposition() {
        use Disposition::*;
        for (codes, expected) in [
            (
                &["08006", "40001", "40P01", "53300", "53100", "57P01", "57P03", "25006", "0A000", "XX000"][..],
                Transient,
            ),
            (&["55P03", "57014", "53200"], Contended),
            (&["23503", "23505"], Waiting),
            (&["22P02", "22001", "22003", "23502", "23514", "P0001", "54001", "54000", "42501", "99999", ""], Event),
            (&["42P01", "42703", "42883", "42601", "42804", "3F000", "28000"], Operator),
        ] {
            for code in codes {
                assert_eq!(of_sqlstate(code), expected, "{code}");
            }
        }
    }
}
