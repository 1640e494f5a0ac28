//! What changes more than one event asks first, or needs `--yes` where nobody can be asked.

use std::io::{self, BufRead, IsTerminal, Write};

/// Ok to go on. `question` says what would be changed ("Replay 4,711 events?"); `yes` is the flag.
pub fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    ask(question, yes, terminal, &mut io::stdin().lock(), &mut io::stderr())
}

fn ask(question: &str, yes: bool, terminal: bool, from: &mut impl BufRead, to: &mut impl Write) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !terminal {
        anyhow::bail!("{question} Nobody can be asked without a terminal: give --yes. Nothing was changed");
    }
    write!(to, "{question} [y/N] ")?;
    to.flush()?;
    let mut answer = String::new();
    from.read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => anyhow::bail!("not confirmed; nothing was changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(yes: bool, terminal: bool, text: &str) -> bool {
        ask("Replay 2 events?", yes, terminal, &mut text.as_bytes(), &mut Vec::new()).is_ok()
    }

    #[test]
    fn only_a_clear_yes_goes_on() {
        assert!(answer(false, true, "y\n"));
        assert!(answer(false, true, "Yes\n"));
        for text in ["", "\n", "n\n", "yup\n"] {
            assert!(!answer(false, true, text), "{text:?}");
        }
    }

    #[test]
    fn without_a_terminal_only_the_flag_goes_on() {
        assert!(!answer(false, false, "y\n"));
        assert!(answer(true, false, ""));
    }
}
