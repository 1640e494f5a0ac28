//! Numbers, times and spans as people read them at three in the morning.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1,234 rows`, or where it is known about how many there are `1,234 of about 5,000 rows`.
pub(crate) fn rows_of(rows: u64, estimate: Option<u64>) -> String {
    let of = estimate.map(|all| format!(" of about {}", thousands(all))).unwrap_or_default();
    format!("{}{of} rows", thousands(rows))
}

/// So many in so long: how many a second.
pub(crate) fn per_second(many: u64, took: Duration) -> f64 {
    many as f64 / took.as_secs_f64().max(0.001)
}

/// `1 event`, `2 events`.
pub(crate) fn several(n: u64, word: &str) -> String {
    format!("{} {word}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// Seconds in at most two units: `8 ms`, `2.4 s`, `45 s`, `4 min`, `2 h 5 min`, `3 d 4 h`.
pub(crate) fn span(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and saturates")]
    let whole = seconds.round() as u64;
    let two = |big: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{big} {unit}"),
        _ => format!("{big} {unit} {small} {smaller}"),
    };
    match whole {
        0..60 => format!("{whole} s"),
        60..600 => two(whole / 60, "min", whole % 60, "s"),
        600..3600 => format!("{} min", whole / 60),
        3600..86_400 => two(whole / 3600, "h", whole % 3600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
    }
}

/// A rate: `0`, `0.4`, `12`, `1,234`.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if !r.is_finite() || r < 0.005 => "0".to_owned(),
        r if r < 1.0 => format!("{r:.2}").trim_end_matches('0').to_owned(),
        r if r < 9.95 => format!("{r:.1}"),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and saturates")]
        r => thousands(r.round() as u64),
    }
}

/// A moment to the second, and where it is told.
pub(crate) fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `02:41 UTC`, or with the day where that is not today.
pub(crate) fn clock(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let format = if at.date_naive() == now.date_naive() { "%H:%M UTC" } else { "%Y-%m-%d %H:%M UTC" };
    at.format(format).to_string()
}

/// The beginning of a long text, cut between characters; the flag tells that there is more.
pub(crate) fn beginning(text: &str, most: usize) -> (&str, bool) {
    match text.char_indices().nth(most) {
        Some((at, _)) => (&text[..at], true),
        None => (text, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_at_most_two_units() {
        for (seconds, expected) in [
            (0.0, "0 ms"),
            (0.0123, "12 ms"),
            (0.9996, "1.0 s"),
            (2.44, "2.4 s"),
            (9.99, "10 s"),
            (59.4, "59 s"),
            (60.0, "1 min"),
            (245.0, "4 min 5 s"),
            (2000.0, "33 min"),
            (7500.0, "2 h 5 min"),
            (273_600.0, "3 d 4 h"),
            (-3.0, "0 ms"),
            (f64::NAN, "0 ms"),
        ] {
            assert_eq!(span(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn rates_lose_digits_as_they_grow() {
        for (r, expected) in
            [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (3.12, "3.1"), (42.4, "42"), (12_345.0, "12,345")]
        {
            assert_eq!(rate(r), expected, "{r}");
        }
    }

    #[test]
    fn numbers_and_texts_are_cut_where_they_may_be() {
        assert_eq!(several(1, "event"), "1 event");
        assert_eq!(several(1_234_567, "event"), "1,234,567 events");
        assert_eq!(beginning("äöü", 2), ("äö", true));
        assert_eq!(beginning("äöü", 3), ("äöü", false));
    }
}
