//! What the demo says, and how: whole lines that stay, and one line of numbers that is redrawn on a terminal and appended
//! elsewhere.

use std::future::Future;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How a part of a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Strong,
    Faint,
}

pub(super) struct Screen<W> {
    out: W,
    terminal: bool,
    color: bool,
    /// A line without its end stands at the bottom.
    open: bool,
    /// The last whole line was empty.
    blank: bool,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, terminal: bool, color: bool) -> Screen<W> {
        Screen { out, terminal, color, open: false, blank: false }
    }

    /// Colours a part of a text.
    pub(super) fn tone(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Strong => "1",
            Tone::Faint => "2",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Whole lines, which stay.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.clear()?;
        writeln!(self.out, "{text}")?;
        self.blank = text.is_empty();
        self.out.flush()
    }

    /// Whole lines, which stay, with an empty one before and after.
    pub(super) fn paragraph(&mut self, text: &str) -> io::Result<()> {
        if !self.blank {
            self.say("")?;
        }
        self.say(text)?;
        self.say("")
    }

    /// The line of numbers.
    pub(super) fn status(&mut self, text: &str) -> io::Result<()> {
        if !self.terminal {
            return self.say(text);
        }
        self.clear()?;
        write!(self.out, "{text}")?;
        self.open = true;
        self.out.flush()
    }

    /// Waits for something that may take a while: says what, and every second that it still does.
    pub(super) async fn patiently<T>(&mut self, what: &str, work: impl Future<Output = T>) -> io::Result<T> {
        let started = Instant::now();
        let mut work = std::pin::pin!(work);
        self.status(&format!("{what} …"))?;
        loop {
            match tokio::time::timeout(Duration::from_secs(1), work.as_mut()).await {
                Ok(done) => {
                    if self.terminal {
                        self.say(&format!("{what}: {:.1} s", started.elapsed().as_secs_f64()))?;
                    }
                    return Ok(done);
                }
                Err(_) => self.status(&format!("{what} … {} s", started.elapsed().as_secs()))?,
            }
        }
    }

    fn clear(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.open) {
            write!(self.out, "\r\x1b[K")?;
        }
        Ok(())
    }
}

/// `12345` as `12,345`.
pub(super) fn thousands(n: i64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds as people read them.
pub(super) fn seconds(lag: f64) -> String {
    if lag < 1.0 { format!("{:.0} ms", lag * 1000.0) } else { format!("{lag:.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (n, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567"), (-1000, "-1,000"), (-100, "-100")]
        {
            assert_eq!(thousands(n), text);
        }
        assert_eq!((seconds(0.0123), seconds(2.04)), ("12 ms".to_owned(), "2.0 s".to_owned()));
    }

    #[test]
    fn the_line_of_numbers_is_redrawn_on_a_terminal_only() {
        for (terminal, expected) in [(true, "1\r\x1b[K2\r\x1b[K\nb\n\nc\n\n"), (false, "1\n2\n\nb\n\nc\n\n")] {
            let mut out = Vec::new();
            let mut screen = Screen::new(&mut out, terminal, false);
            screen.status("1").unwrap();
            screen.status("2").unwrap();
            screen.paragraph("b").unwrap();
            screen.paragraph("c").unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
