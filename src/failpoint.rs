//! Points between the steps of a batch and of a copy, for the project's own tests: the environment variable
//! `OUTBOX_RELAY_FAILPOINT=<name>` makes a process built with the feature `failpoints` end there without a word, and
//! `<name>=stop` makes it stand still until it is told to go on (`SIGCONT`). `<name>:<n>`: when it comes by for the n-th time.
//! Without the feature this is nothing at all.

/// A place between two steps.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn reach(_name: &str) {}

/// Ends or stops the process here if it was told to.
#[cfg(feature = "failpoints")]
pub(crate) fn reach(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("OUTBOX_RELAY_FAILPOINT") else { return };
    let (place, action) = wanted.split_once('=').unwrap_or((&wanted, "abort"));
    let (point, times) = place.split_once(':').unwrap_or((place, "1"));
    if point != name || PASSED.fetch_add(1, Ordering::SeqCst) + 1 != times.parse().unwrap_or(1) {
        return;
    }
    if action == "stop" {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
        return;
    }
    eprintln!("failpoint {name}: the process ends here");
    std::process::abort();
}
