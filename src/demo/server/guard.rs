//! Takes a server's processes and folder away when this process is gone, however it went.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The life of a folder, a server's or any other. A small shell waits on a pipe that only this process holds open: the pipe closes when
/// the guard is dropped, and also when the process exits without dropping anything (statics) or is killed.
#[derive(Debug)]
pub(in crate::demo) struct Guard {
    shell: Child,
}

/// `$1`: the folder. A postmaster that is still there runs on unsupervised: end it, frozen or not. As the last thing it does, it removes
/// its lock file; its process id alone would not tell, where nobody reaps orphans. Whoever else works there (`initdb`, a postmaster that
/// has no lock yet) ends before the folder goes: it would make it anew, or run on without it.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
read -r _
lock=$1/data/postmaster.pid
pid=
[ -r "$lock" ] && read -r pid < "$lock"
if [ -n "$pid" ] && kill -QUIT "$pid"; then
    kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children" || pgrep -P "$pid")
    tries=0
    while [ -e "$lock" ] && kill -0 "$pid" && [ $tries -lt 100 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    [ -e "$lock" ] && kill -KILL "$pid"
fi
for worker in "$1"/worker.*; do
    kill -KILL -- "-${worker##*.}"
done
tries=0
until rm -rf "$1" || [ $tries -ge 20 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
"#;

impl Guard {
    /// Makes the folder, which nobody but us may enter. Guarded before it is there: a kill at any moment leaves nothing.
    pub(in crate::demo) fn make(folder: &Path) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(SCRIPT).arg("outbox-relay-guard").arg(folder).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut guard = Self { shell: command.spawn()? };
        if let Err(error) = DirBuilder::new().mode(0o700).create(folder) {
            // What is there, if anything, is not ours to remove.
            guard.shell.kill()?;
            return Err(error);
        }
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Closes the pipe, then waits until the folder is gone.
        let _ = self.shell.wait();
    }
}
