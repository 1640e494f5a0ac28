//! What a command prints to stdout. `println!` panics when the reader has gone (`| head`); this ends the command quietly.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};

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

/// Prints a value as JSON on one line, for programs that read a stream.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print(format_args!("{}\n", serde_json::to_string(value)?))
}

/// Prints text in place of what the last call printed; where there is no terminal, below it.
pub fn refresh(text: impl Display) -> anyhow::Result<()> {
    const CLEARED: &str = "\x1b[H\x1b[2J\x1b[3J";
    let before = if io::stdout().is_terminal() { CLEARED } else { "" };
    print(format_args!("{before}{text}"))
}

/// Text whose lines begin with `error`, `problem`, `warning` or `note`, these words in colour where it goes to a terminal and
/// nobody has asked for none (<https://no-color.org>).
pub fn painted(text: &str) -> String {
    if io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|wish| wish.is_empty()) {
        paint(text)
    } else {
        text.to_owned()
    }
}

fn paint(text: &str) -> String {
    const COLOURS: [(&str, &str); 4] = [("error", "1;31"), ("problem", "1;31"), ("warning", "1;33"), ("note", "1;36")];
    let line = |line: &str| {
        let known = COLOURS.iter().find(|(word, _)| line.strip_prefix(word).is_some_and(|rest| rest.starts_with('[')));
        known.map_or_else(
            || line.to_owned(),
            |(word, colour)| format!("\x1b[{colour}m{word}\x1b[0m{}", &line[word.len()..]),
        )
    };
    text.split_inclusive('\n').map(line).collect()
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
    fn only_the_word_that_says_how_bad_it_is_is_painted() {
        assert_eq!(
            paint("problem[index.missing]: x\n  why:  warning[y]\nNo problems.\n"),
            "\x1b[1;31mproblem\x1b[0m[index.missing]: x\n  why:  warning[y]\nNo problems.\n"
        );
    }

    #[test]
    fn a_reader_that_has_gone_is_told_apart_from_a_full_disk() {
        assert!(write(&mut Fails(io::ErrorKind::BrokenPipe), "x").unwrap_err().is::<StdoutClosed>());
        assert!(!write(&mut Fails(io::ErrorKind::StorageFull), "x").unwrap_err().is::<StdoutClosed>());
    }
}
