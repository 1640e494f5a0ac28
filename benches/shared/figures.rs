//! Figures with their spread, and tables as `docs/performance.md` has them.

use comfy_table::{Table, presets};

pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    table
}

/// The middle one of some figures, the lowest and the highest.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spread {
    pub(crate) middle: f64,
    low: f64,
    high: f64,
    alone: bool,
}

pub(crate) fn spread(mut figures: Vec<f64>) -> Spread {
    figures.sort_by(f64::total_cmp);
    let at = |at: usize| figures.get(at).copied().unwrap_or(f64::NAN);
    let last = figures.len().saturating_sub(1);
    Spread { middle: at(figures.len() / 2), low: at(0), high: at(last), alone: last == 0 }
}

impl Spread {
    /// Nothing where nothing was measured.
    pub(crate) fn told(&self, digits: usize) -> String {
        if self.middle.is_nan() {
            return String::new();
        }
        if self.alone {
            return format!("{:.digits$}", self.middle);
        }
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.middle, self.low, self.high)
    }
}
