//! Lanes, and the processes that work on them.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::words::{rate, several, span, thousands};
use crate::event::Lane;
use crate::health::Facts;
use crate::operator::Holder;
use crate::operator::history::Worker;

/// More lanes than this are told as numbers only.
const SHOWN: usize = 256;
/// More holders than this are told as a number.
const HOLDERS: usize = 8;

pub(super) fn lanes(facts: &Facts, holders: &[Holder], workers: &[Worker], lanes: usize) -> Markup {
    let stopped: BTreeSet<Lane> = facts.stopped_lanes.iter().map(|(lane, _)| *lane).collect();
    let slow: BTreeSet<Lane> = facts.slow_lanes.iter().copied().collect();
    let batches = |lane: usize| workers.iter().filter_map(|worker| worker.batches.get(&lane)).sum::<u64>();
    let state = |lane: usize| {
        let named = Lane(i32::try_from(lane).unwrap_or(i32::MAX));
        match batches(lane) {
            _ if stopped.contains(&named) => ("stopped", "has stopped".to_owned()),
            _ if slow.contains(&named) => ("slow", "has a batch in flight for seconds".to_owned()),
            0 => ("idle", "no batch".to_owned()),
            n => ("busy", several(n, "batch").replace("batchs", "batches")),
        }
    };
    html! {
        section class="card" data-live="lanes" aria-labelledby="lanes" {
            div class="head" { h2 id="lanes" { "Lanes, and who works on them" } span class="faint" { "last five minutes" } }
            @if lanes <= SHOWN {
                ol class="lanes" {
                    @for lane in 0..lanes {
                        @let (class, words) = state(lane);
                        li class=(class) title={ "lane " (lane) ": " (words) } {
                            span class="number" { (lane) }
                            span class="sr" { ": " (words) }
                        }
                    }
                }
            }
            p class="faint" {
                @match holders {
                    [] => "No lane is held at this moment.",
                    holders => {
                        "Held at this moment: "
                        @for (at, holder) in holders.iter().take(HOLDERS).enumerate() {
                            @if at > 0 { "; " }
                            "lane " (holder.lane) ", for " (span(holder.seconds)) " by session "
                            span class="mono" { (holder.pid) } " from " span class="mono text" { (holder.client) }
                        }
                        @if holders.len() > HOLDERS { "; and " (thousands((holders.len() - HOLDERS) as u64)) " more" }
                        "."
                    }
                }
            }
            @if workers.is_empty() {
                p class="empty" { "No process has worked in the last five minutes." }
            } @else {
                ul class="workers" {
                    @for worker in workers {
                        li {
                            span class="mono text" { (worker.name) }
                            @if worker.is_this { span class="badge calm" { "this process" } }
                            span class="faint" {
                                (rate(worker.leaving)) " events/s, "
                                (thousands(worker.batches.values().sum())) " batches in "
                                (several(worker.batches.len() as u64, "lane"))
                            }
                        }
                    }
                }
            }
        }
    }
}
