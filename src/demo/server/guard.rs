//! Takes a server's processes and folder away when this process is gone, however it went.

use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The life of a folder, a server's or any other. A small shell waits on a pipe that only this process holds open: the pipe closes when
/// the guard is dropped, and also when the process exits without dropping anything (statics) or is killed. Through it the shell is told who
/// works in the folder: of nobody else it ends anything, for it may run as root, and others write in there.
#[derive(Debug)]
pub(in crate::demo) struct Guard {
    shell: Child,
}

/// `$1`: the folder. A postmaster that is still there runs on unsupervised: end it, frozen or not. As the last thing it does, it removes
/// its lock file; its process id alone would not tell, where nobody reaps orphans. Workers (`initdb`, a postmaster that has no lock yet)
/// go with their groups before the folder does: they would make it anew, or run on without it.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
workers=
server=
while read -r word pid; do
    others=
    for worker in $workers; do
        [ "$worker" = "$pid" ] || others="$others $worker"
    done
    workers=$others
    [ "$server" = "$pid" ] && server=
    case $word in
        works) workers="$workers $pid" ;;
        serves) server=$pid ;;
    esac
done
lock=$1/data/postmaster.pid
if [ -n "$server" ] && [ -e "$lock" ] && kill -QUIT "$server"; then
    kill -CONT "$server" $(cat "/proc/$server/task/$server/children" || pgrep -P "$server")
    tries=0
    while [ -e "$lock" ] && kill -0 "$server" && [ $tries -lt 100 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    [ -e "$lock" ] && kill -KILL "$server"
fi
for worker in $workers; do
    kill -KILL "-$worker"
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

    /// A program works in the folder: the leader of its process group.
    pub(super) fn works(&self, leader: u32) -> io::Result<()> {
        self.tell("works", leader)
    }

    /// It is the folder's server, and has its lock file.
    pub(super) fn serves(&self, postmaster: u32) -> io::Result<()> {
        self.tell("serves", postmaster)
    }

    /// It has ended.
    pub(super) fn ended(&self, process: u32) -> io::Result<()> {
        self.tell("ended", process)
    }

    fn tell(&self, word: &str, process: u32) -> io::Result<()> {
        match self.shell.stdin.as_ref() {
            Some(ref mut pipe) => pipe.write_all(format!("{word} {process}\n").as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Closes the pipe, then waits until the folder is gone.
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the shell that is there, whose `kill` may take a group or not.
    #[test]
    fn who_works_in_a_folder_goes_with_it_and_who_has_ended_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("guarded");
        let sleeper = || Command::new("sleep").arg("30").process_group(0).spawn().unwrap();
        let (mut works, mut has_ended) = (sleeper(), sleeper());
        let guard = Guard::make(&folder).unwrap();
        guard.works(has_ended.id()).unwrap();
        guard.works(works.id()).unwrap();
        guard.ended(has_ended.id()).unwrap();
        drop(guard);
        assert!(!folder.exists());
        assert!(!works.wait().unwrap().success());
        assert!(has_ended.try_wait().unwrap().is_none());
        has_ended.kill().unwrap();
        has_ended.wait().unwrap();
    }
}
