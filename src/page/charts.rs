//! The last hour as lines. Drawn on the server, without a script; each minute tells its numbers to whoever points at it.

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use super::words::{rate, span};
use crate::operator::history::Point;

/// The drawing's own units; it is stretched to whatever room there is.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 150.0;

/// One line.
struct Line {
    name: &'static str,
    class: &'static str,
    values: Vec<Option<f64>>,
}

/// Both charts.
pub(super) fn charts(points: &[Point], now: DateTime<Utc>) -> Markup {
    let line =
        |name, class, of: fn(&Point) -> Option<f64>| Line { name, class, values: points.iter().map(of).collect() };
    html! {
        div class="charts" data-live="charts" {
            (chart(
                "flow",
                "Events a second",
                &[line("written", "s1", |p| p.arriving), line("applied", "s2", |p| p.leaving)],
                rate,
                now,
            ))
            (chart(
                "lag",
                "Lag, from written to applied",
                &[line("half within", "s1", |p| p.lag_p50), line("99 of 100 within", "s3", |p| p.lag_p99)],
                span,
                now,
            ))
        }
    }
}

fn chart(id: &str, title: &str, lines: &[Line], unit: fn(f64) -> String, now: DateTime<Utc>) -> Markup {
    let top = nice(lines.iter().flat_map(|line| &line.values).flatten().copied().fold(0.0, f64::max));
    let slots = lines.first().map_or(0, |line| line.values.len());
    let any = lines.iter().any(|line| line.values.iter().any(Option::is_some));
    html! {
        figure class="card chart" aria-labelledby=(id) {
            figcaption class="head" {
                h2 id=(id) { (title) }
                ul class="legend" {
                    @for line in lines {
                        li class=(line.class) {
                            span class="swatch" {}
                            (line.name) " "
                            strong { @match latest(line) { Some(value) => (unit(value)), None => "–" } }
                        }
                    }
                }
            }
            @if any {
                div class="plot" {
                    div class="y" aria-hidden="true" { span { (unit(top)) } span { (unit(top / 2.0)) } span { "0" } }
                    svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(summary(title, lines, unit)) {
                        @for n in [0.0, 0.5, 1.0] {
                            @let y = (HEIGHT - 1.0) * n + 0.5;
                            line class="grid" x1="0" x2=(WIDTH) y1=(y) y2=(y) {}
                        }
                        @for line in lines { path class=(line.class) d=(path(&line.values, top)) {} }
                        @for slot in 0..slots { (pointer(slot, slots, lines, unit, now)) }
                    }
                    div class="x" aria-hidden="true" { span { "1 h ago" } span { "30 min" } span { "now" } }
                }
            } @else {
                p class="empty" { "Nothing was seen in the last hour yet." }
            }
        }
    }
}

fn latest(line: &Line) -> Option<f64> {
    line.values.iter().rev().take(2).find_map(|value| *value)
}

/// For those who do not see it.
fn summary(title: &str, lines: &[Line], unit: fn(f64) -> String) -> String {
    let of = |line: &Line| {
        let known: Vec<f64> = line.values.iter().flatten().copied().collect();
        let now = latest(line).map_or("nothing".to_owned(), unit);
        format!("{} {now} now, at most {}", line.name, unit(known.into_iter().fold(0.0, f64::max)))
    };
    format!("{title} in the last hour: {}.", lines.iter().map(of).collect::<Vec<_>>().join("; "))
}

/// Invisible, over its minute, with the numbers.
fn pointer(slot: usize, slots: usize, lines: &[Line], unit: fn(f64) -> String, now: DateTime<Utc>) -> Markup {
    if lines.iter().all(|line| line.values.get(slot).is_none_or(Option::is_none)) {
        return Markup::default();
    }
    let width = WIDTH / as_f64(slots);
    let ago = i64::try_from(slots - 1 - slot).unwrap_or_default();
    let minute = (now - TimeDelta::minutes(ago)).format("%H:%M UTC");
    html! {
        rect class="pointer" x=(as_f64(slot) * width) y="0" width=(width) height=(HEIGHT) {
            title {
                (minute)
                @for line in lines {
                    @if let Some(value) = line.values.get(slot).copied().flatten() { "\n" (line.name) " " (unit(value)) }
                }
            }
        }
    }
}

/// `M` where a line begins, also anew after a gap; a single minute becomes a short dash.
fn path(values: &[Option<f64>], top: f64) -> String {
    let width = WIDTH / as_f64(values.len().max(1));
    let mut d = String::new();
    let mut drawing = false;
    for (slot, value) in values.iter().enumerate() {
        let Some(value) = value else {
            drawing = false;
            continue;
        };
        let x = (as_f64(slot) + 0.5) * width;
        let y = (HEIGHT - 2.0) * (1.0 - (value / top).clamp(0.0, 1.0)) + 1.0;
        if drawing {
            d.push_str(&format!("L{x:.1} {y:.1}"));
        } else {
            d.push_str(&format!("M{:.1} {y:.1}h{:.1}", x - width * 0.3, width * 0.3));
        }
        drawing = true;
    }
    d
}

/// The next 1, 2 or 5 times a power of ten.
fn nice(highest: f64) -> f64 {
    if highest <= 0.0 || !highest.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(highest.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= highest).unwrap_or(highest)
}

#[expect(clippy::cast_precision_loss, reason = "at most some dozens")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_gaps() {
        let d = path(&[Some(0.0), Some(1.0), None, Some(0.5)], 1.0);
        assert_eq!(d.matches('M').count(), 2, "{d}");
        assert_eq!(d.matches('L').count(), 1, "{d}");
        assert_eq!(path(&[None, None], 1.0), "");
    }

    #[test]
    fn scales_end_in_round_numbers() {
        for (highest, top) in [(0.0, 1.0), (0.03, 0.05), (1.0, 1.0), (7.0, 10.0), (201.0, 500.0), (f64::NAN, 1.0)] {
            assert!((nice(highest) - top).abs() < 1e-9, "{highest}: {}", nice(highest));
        }
    }
}
