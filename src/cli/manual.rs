//! `completions` and `man`: what the definitions of the command line say, in the forms that shells and `man` read.

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::{Exit, output};

/// `completions`
pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "outbox-relay", &mut script);
    output::print(String::from_utf8(script)?)?;
    Ok(Exit::Done)
}

/// `man`
pub(super) fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let command = Cli::command();
    if let Some(folder) = &args.into {
        let written = clap_mangen::generate_to(command, folder);
        written.with_context(|| format!("{} cannot be written into", folder.display()))?;
        return Ok(Exit::Done);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    output::print(String::from_utf8(page)?)?;
    Ok(Exit::Done)
}
