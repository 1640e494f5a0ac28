//! What a command prints to stdout. `println!` panics when the reader has gone (`| head`); this ends the command quietly.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

/// Whoever read stdout has gone: the command ends, and has done what was wanted of it.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub struct StdoutClosed;

/// Prints text, as it is.
pub fn print(text: impl Display) -> anyhow::Result<()> {
    write(&mut io::stdout().lock(), text)
}

/// Prints a value as JSON, for people and programs.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print(format_args!("{}\n", serde_json::to_string_pretty(value)?))
}

fn write(to: &mut impl Write, text: impl Display) -> anyhow::Result<()> {
    match write!(to, "{text}").and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_told_apart_from_a_full_disk() {
        assert!(write(&mut Fails(io::ErrorKind::BrokenPipe), "x").unwrap_err().is::<StdoutClosed>());
        assert!(!write(&mut Fails(io::ErrorKind::StorageFull), "x").unwrap_err().is::<StdoutClosed>());
    }
}
