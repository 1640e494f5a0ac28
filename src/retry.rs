//! How long to wait before trying again. The one place that knows the `backoff` crate.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

use crate::config;

/// Half of the pause, either way, is chance: many events that failed together do not come back together.
const JITTER: f64 = 0.5;

/// The pause before attempt `failed + 1` of an event, with jitter: doubles from `initial`, bounded by `max`.
pub fn pause_after(failed: u32, retry: &config::Retry) -> Duration {
    let doubled = 2u32.checked_pow(failed.saturating_sub(1)).and_then(|n| retry.initial.checked_mul(n));
    let interval = doubled.unwrap_or(retry.max).min(retry.max);
    policy(interval, retry.max).next_backoff().unwrap_or(retry.max).min(retry.max)
}

/// A growing pause between tries of something that must work in the end: a connection, a stopped entity.
#[derive(Debug)]
pub struct Pause {
    inner: ExponentialBackoff,
}

impl Pause {
    /// Doubles from `initial`, bounded by `max`, for ever.
    pub fn new(initial: Duration, max: Duration) -> Pause {
        Pause { inner: policy(initial, max) }
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        self.inner.next_backoff().unwrap_or(self.inner.max_interval)
    }

    /// It worked: start small again.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

fn policy(initial: Duration, max: Duration) -> ExponentialBackoff {
    ExponentialBackoff {
        current_interval: initial,
        initial_interval: initial,
        randomization_factor: JITTER,
        multiplier: 2.0,
        max_interval: max,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_up_to_the_maximum() {
        let retry = config::Retry {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(300),
            attempts: 10,
            patience: Duration::from_secs(600),
        };
        for (failed, nominal) in [(1, 1.0), (2, 2.0), (5, 16.0), (9, 256.0), (10, 300.0), (200, 300.0)] {
            let pause = pause_after(failed, &retry).as_secs_f64();
            assert!(pause >= nominal * 0.49 && pause <= (nominal * 1.51).min(300.0), "{failed}: {pause}");
        }
    }
}
