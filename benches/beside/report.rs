//! What a case tells: figures with their spread, and whether they are what they were to be, in Markdown.

use comfy_table::Table;

pub(crate) use crate::shared::figures::{Spread, spread, table};

/// What came of a case.
pub(crate) struct Report {
    /// How much of the full size was measured.
    pub(crate) done: String,
    pub(crate) table: Table,
}

/// `20,000 of 200,000 events`; without the second where that is all.
pub(crate) fn of<N: PartialEq + Into<u64> + Copy>(done: N, full: N, what: &str) -> String {
    if done == full {
        return format!("{} {what}", thousands(full.into()));
    }
    format!("{} {what} (in full: {})", thousands(done.into()), thousands(full.into()))
}

/// How often, in words.
pub(crate) fn rounds(rounds: u32) -> String {
    if rounds == 1 { "once".to_owned() } else { format!("{rounds} rounds in turn") }
}

/// `1,234,567`
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    /// What it is to be, and whether it is.
    pub(crate) fn told(self, found: f64) -> String {
        let (sign, bound, met) = match self {
            Target::AtLeast(bound) => ('≥', bound, found >= bound),
            Target::AtMost(bound) => ('≤', bound, found <= bound),
        };
        format!("{sign} {bound}: {}", if met { "met" } else { "missed" })
    }
}
