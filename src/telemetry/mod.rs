//! Logs, and the traces that the writers of events started.
//!
//! Guarantees: nothing here holds up a batch. Spans are handed over in memory and sent by a thread of their own; when the
//! collector is away they are dropped, and that is logged once.

mod spans;
mod trace_parent;

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

pub use self::spans::{applied, flush};
pub use self::trace_parent::TraceParent;
use crate::config::{Log, LogFormat};

/// Sends logs to stderr from now on. The first call of a process decides; later ones change nothing.
pub fn init(log: &Log) {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // A configuration that exists has a filter that parses.
        let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
        let to_stderr = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let set = match log.format {
            LogFormat::Text => {
                to_stderr.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init()
            }
            LogFormat::Json => to_stderr.json().flatten_event(true).finish().try_init(),
        };
        // A test may have set its own before.
        let _ = set;
        spans::init();
    });
}
