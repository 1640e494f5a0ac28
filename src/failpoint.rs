//! Crash points between the steps of a batch, for the project's own tests: the environment variable
//! `OUTBOX_RELAY_FAILPOINT=<name>=<action>` makes a process built with the feature `failpoints` stop dead there. Without the
//! feature this is nothing at all.

/// A place between two steps.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn reach(_name: &str) {}

/// Aborts the process here if it was told to, `<name>` or `<name>:<n>` for the n-th time it comes by.
#[cfg(feature = "failpoints")]
pub(crate) fn reach(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("OUTBOX_RELAY_FAILPOINT") else { return };
    let (point, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if point == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == times.parse().unwrap_or(1) {
        eprintln!("failpoint {name}: the process ends here");
        std::process::abort();
    }
}
