//! Moments as people read them at three in the morning, in markup; and all of [`crate::words`].

use chrono::{DateTime, Utc};
use maud::{Markup, html};

pub(super) use crate::words::{beginning, moment, rate, several, span, thousands};

/// How long ago, in words; the moment itself for whoever points at it, and for programs.
pub(super) fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let passed = (now - at).as_seconds_f64();
    let text = match passed {
        p if p < -1.0 => format!("in {}", span(-p)),
        p if p < 1.0 => "just now".to_owned(),
        p => format!("{} ago", span(p.floor())),
    };
    html! { time datetime=(at.to_rfc3339()) title=(moment(at)) { (text) } }
}

/// The moment, and how long ago that is.
pub(super) fn when(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    html! { span class="mono" { (at.format("%Y-%m-%d %H:%M:%S")) } " UTC " span class="faint" { "(" (ago(at, now)) ")" } }
}
