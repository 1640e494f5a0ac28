//! A flow beside a transaction that is open all the while, and the same without it: what is dead cannot be cleaned away, and the
//! relay must not walk over it again and again.

use anyhow::Result;

use crate::case::Scale;
use crate::contender::Contender;
use crate::flow::{self, Flow};
use crate::ground::Ground;
use crate::report::{Report, Target, of, table};

/// Events a second.
const RATE: u32 = 2_000;
/// Seconds of writing.
const FULL: u64 = 600;
/// Events that were processed before.
const BEFORE: u32 = 500_000;

/// Once each: it is long by itself, and told by thirds.
pub(crate) async fn measure(ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    let (seconds, before) = (scale.seconds.unwrap_or(FULL), scale.size.unwrap_or(BEFORE));
    let flow = Flow { who: Contender::Relay, rate: RATE, seconds, before, open: false };
    let free = flow::measure(flow, ground, relay).await?;
    let beside = flow::measure(Flow { open: true, ..flow }, ground, relay).await?;
    let mut table = table([
        "",
        "applied/s",
        "applied/s by thirds of the time",
        "p50 ms",
        "p99 ms",
        "p99 ms by thirds of the time",
        "processor time with the writers', µs/event",
    ]);
    for (label, run) in [("free", &free), ("with a transaction open", &beside)] {
        table.add_row([
            label.to_owned(),
            format!("{:.0}", run.applied),
            run.rate_by_thirds().map(|third| format!("{third:.0}")).join(", "),
            format!("{:.1}", run.quantile(0.5)),
            format!("{:.1}", run.quantile(0.99)),
            run.quantile_by_thirds(0.99).map(|third| format!("{third:.1}")).join(", "),
            format!("{:.0}", run.cpu_us),
        ]);
    }
    let (rate, late) = (beside.applied / free.applied, free.quantile(0.99) / beside.quantile(0.99));
    let judged = |ratio: f64| format!("{ratio:.2} ({})", Target::AtLeast(0.95).told(ratio));
    table.add_row([
        "with it to free; p99 free to with it".to_owned(),
        judged(rate),
        String::new(),
        String::new(),
        judged(late),
        String::new(),
        String::new(),
    ]);
    let done = format!(
        "{} at {RATE} events/s each, after {}",
        of(seconds, FULL, "seconds"),
        of(before, BEFORE, "processed events")
    );
    Ok(Report { done, table })
}
