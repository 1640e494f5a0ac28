//! On what a run was measured: the machine, its servers and the build, so that its output says by itself what its figures are of.

use std::fs;
use std::process::Command;

use anyhow::Result;
use outbox_relay::demo::server::Server;

use super::servers::value;

/// What figures depend on, of a server's settings.
const SETTINGS: &str = "shared_buffers, max_wal_size, wal_level, fsync, synchronous_commit, full_page_writes";

/// A list in Markdown. `server`: one of two that are set alike.
pub(crate) async fn told(server: &Server) -> Result<String> {
    let settings: String = value(
        &server.url("postgres"),
        &format!(
            "SELECT 'Postgres ' || current_setting('server_version') || string_agg(format(', `%s = %s`', name, current_setting(name)), '')
             FROM unnest(string_to_array('{SETTINGS}', ', ')) AS name"
        ),
    )
    .await?;
    Ok(format!("- machine: {}\n- two servers: {settings}\n- program: {}", machine(), build()))
}

fn machine() -> String {
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cores| cores.to_string());
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|memory| memory.trim_end_matches(" kB").parse::<f64>().ok())
        .map_or_else(|| "?".to_owned(), |kilobytes| format!("{:.1}", kilobytes * 1024.0 / 1e9));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = field("/etc/os-release", "PRETTY_NAME").unwrap_or_default();
    format!("{processor}, {cores} cores, {memory} GB of memory; Linux {}, {}", kernel.trim(), system.trim_matches('"'))
}

fn build() -> String {
    let commit = said("git", &["describe", "--always", "--dirty", "--exclude=*"]).map(|commit| format!(" of {commit}"));
    let compiler = said("rustc", &["-V"]).map(|compiler| format!(", {compiler}"));
    format!(
        "outbox-relay {}{}{}, {}",
        env!("CARGO_PKG_VERSION"),
        commit.unwrap_or_default(),
        compiler.unwrap_or_default(),
        if cfg!(debug_assertions) { "not optimised" } else { "optimised" }
    )
}

/// What a file of such lines, `name: value` or `name=value`, first says of a name.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches([' ', '\t', ':', '=']).trim().to_owned())
}

/// What a program says, run where this was built; `None` where it is not there, or cannot tell.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let words = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !words.is_empty()).then_some(words)
}
