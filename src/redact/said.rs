//! What a server says of a row, without the row's values.

use super::HIDDEN;

/// How the server's own messages begin that name types, columns, constraints and relations, and values at most in quotes.
const DATA: [&str; 21] = [
    "invalid input syntax for type ",
    "invalid input value for enum ",
    "value too long for type ",
    "value \"",
    "date/time field value out of range",
    "interval field value out of range",
    "time zone displacement out of range",
    "numeric field overflow",
    "division by zero",
    "integer out of range",
    "bigint out of range",
    "smallint out of range",
    "timestamp out of range",
    "date out of range",
    "cannot cast jsonb ",
    "cannot extract elements from ",
    "cannot call ",
    "malformed array literal: ",
    "malformed record literal: ",
    "unsupported Unicode escape sequence",
    "invalid byte sequence for encoding ",
];
/// The same for integrity: nothing in these is a value.
const INTEGRITY: [&str; 8] = [
    "duplicate key value violates ",
    "null value in column ",
    "new row for relation ",
    "insert or update on table ",
    "update or delete on table ",
    "conflicting key value violates ",
    "no partition of relation ",
    "value for domain ",
];

/// The message with nothing in it that may be a row's value. What the server is not known to say by itself may quote anything
/// (an exception that somebody raises; a server that speaks another language), and is hidden whole.
pub fn without_values(code: &str, message: &str) -> String {
    let begins_like = |known: &[&str]| known.iter().any(|known| message.starts_with(known));
    let is_sqlstate = code.len() == 5 && code.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    match code.get(..2) {
        _ if code == "client" => HIDDEN.to_owned(),
        // The relay's own words.
        _ if !is_sqlstate => message.to_owned(),
        Some("22") if begins_like(&DATA) => without_quoted(message),
        Some("23") if begins_like(&INTEGRITY) => message.to_owned(),
        // Of statements and their names, of connections, resources, transactions.
        Some(
            "42" | "08" | "0A" | "25" | "26" | "28" | "3D" | "3F" | "40" | "53" | "54" | "55" | "57" | "58" | "XX",
        ) => message.to_owned(),
        _ => HIDDEN.to_owned(),
    }
}

/// `last_error`: the code, a colon, the message.
pub(super) fn line_without_values(line: &str) -> String {
    let is_code = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    match line.split_once(": ") {
        Some((code, message)) if !code.is_empty() && code.chars().all(is_code) => {
            format!("{code}: {}", without_values(code, message))
        }
        _ => HIDDEN.to_owned(),
    }
}

/// Why work failed: a server's message behind the name of the side that said it, or behind the entity's. `None`: nothing of it may be shown.
pub(super) fn reason_without_values(code: &str, message: &str) -> Option<String> {
    if matches!(code, "failed" | "too_many_refused" | "legacy.key_repeated") {
        return None;
    }
    let (whose, said) = match message.split_once(": ") {
        Some((whose, said)) if matches!(whose, "legacy" | "new") || whose.starts_with("entity ") => (whose, said),
        _ => ("", message),
    };
    let said = Some(without_values(code, said)).filter(|said| said != HIDDEN)?;
    Some(if whose.is_empty() { said } else { format!("{whose}: {said}") })
}

/// The message as any log may have it: what data exceptions (class 22) quote is the payload's, which is never logged.
pub fn loggable(code: &str, message: &str) -> String {
    if code.starts_with("22") { without_quoted(message) } else { message.to_owned() }
}

/// From the first quote to the last: the value may have quotes of its own.
fn without_quoted(message: &str) -> String {
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}\"…\"{}", &message[..first], &message[last + 1..])
        }
        // A quote that is not closed: whatever follows.
        (Some(first), _) => format!("{}\"…", &message[..first]),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_logged_and_names_are() {
        assert_eq!(
            loggable("22007", "invalid input syntax for type date: \"a \"secret\" day\""),
            "invalid input syntax for type date: \"…\""
        );
        assert_eq!(loggable("23502", "null value in column \"name\""), "null value in column \"name\"");
    }

    #[test]
    fn what_the_server_is_known_to_say_stays_without_its_values() {
        for (code, message, expected) in [
            (
                "22P02",
                "invalid input syntax for type integer: \"secret\"",
                "invalid input syntax for type integer: \"…\"",
            ),
            (
                "22003",
                "value \"1 \"2\" 3\" is out of range for type integer",
                "value \"…\" is out of range for type integer",
            ),
            ("22001", "value too long for type character varying(3)", "value too long for type character varying(3)"),
            ("22P02", "syntaxe en entrée invalide pour le type integer : « secret »", HIDDEN),
            ("22023", "secret is no good", HIDDEN),
            (
                "23505",
                "duplicate key value violates unique constraint \"k\"",
                "duplicate key value violates unique constraint \"k\"",
            ),
            ("23514", "secret is no address", HIDDEN),
            ("P0001", "secret", HIDDEN),
            ("U0001", "secret", HIDDEN),
            ("client", "secret", HIDDEN),
            ("42703", "column \"x\" does not exist", "column \"x\" does not exist"),
            ("overtaken", "a later event was applied", "a later event was applied"),
        ] {
            assert_eq!(without_values(code, message), expected, "{code} {message}");
            assert_eq!(line_without_values(&format!("{code}: {message}")), format!("{code}: {expected}"));
        }
        for line in ["", "secret", "a secret: of mine", ": secret"] {
            assert_eq!(line_without_values(line), HIDDEN);
        }
    }
}
