//! Who is measured: the relay, and what users would pick instead.

pub(crate) mod copy;
mod naive;
pub(crate) mod relay;
pub(crate) mod replication;

use std::time::Duration;

use anyhow::Result;

use crate::ground::{Ground, Load};
use crate::meter::Cpu;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// This project's program, as it is released
    Relay,
    /// The loop of tutorials: an event at a time
    Naive,
    /// Logical replication of the outbox, with a trigger that does the same transform
    Replication,
    /// The same with a subscription's own default, which does not wait for its log: what is lost in a crash is sent anew
    Unflushed,
    /// One connection pair, 5,000 events at a time by COPY: the limit of what is written by hand
    Copy,
}

/// A drain in numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drain {
    pub(crate) events: u32,
    pub(crate) took: Duration,
    pub(crate) cpu: Cpu,
    /// The relay's memory at its peak.
    pub(crate) memory_mb: Option<f64>,
}

impl Drain {
    pub(crate) fn per_second(&self) -> f64 {
        f64::from(self.events) / self.took.as_secs_f64()
    }

    /// Microseconds of processor time an event.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.sum() * 1e6 / f64::from(self.events)
    }
}

impl Contender {
    /// Writes the load, drains it, and checks what came of it.
    pub(crate) async fn drain(self, ground: &Ground, load: Load, setup: &relay::Setup) -> Result<Drain> {
        let pair = ground.pair().await?;
        let drain = match self {
            Contender::Relay => relay::drain(ground, &pair, load, setup).await?,
            Contender::Naive => naive::drain(ground, &pair, load).await?,
            Contender::Replication => replication::drain(ground, &pair, load, true).await?,
            Contender::Unflushed => replication::drain(ground, &pair, load, false).await?,
            Contender::Copy => {
                copy::drain(ground, &pair, load, setup.sockets.as_ref().unwrap_or(&ground.sockets)).await?
            }
        };
        load.check(&pair).await?;
        ground.drop(pair).await?;
        Ok(drain)
    }
}

/// An outbox as one makes it by hand: the columns of ours, and one small index to find what is pending.
pub(crate) const OUTBOX: &str = "
    CREATE TABLE outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id uuid NOT NULL DEFAULT gen_random_uuid(),
        aggregate_type text NOT NULL, aggregate_id text NOT NULL, event_type text NOT NULL, payload jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(), status text NOT NULL DEFAULT 'pending', processed_at timestamptz);
    CREATE INDEX outbox_pending ON outbox (id) WHERE status = 'pending';";
