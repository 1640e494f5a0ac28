//! The demo, as the program that people run: it shows what it says, and leaves nothing.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::server::processes_of;
use crate::support::{DEADLINE, eventually};

/// A running demo whose files are all in a folder of the test's own.
struct Program {
    child: Child,
    lines: BufReader<ChildStdout>,
    said: String,
    place: TempDir,
}

impl Program {
    fn start(arguments: &[&str]) -> Program {
        let place = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", place.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Program { child, lines, said: String::new(), place }
    }

    /// The next line that fits.
    fn line(&mut self, fits: impl Fn(&str) -> bool) -> String {
        loop {
            let mut line = String::new();
            let ended = self.lines.read_line(&mut line).unwrap() == 0;
            assert!(!ended, "it ended before:\n{}", self.said);
            self.said.push_str(&line);
            if fits(&line) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit code and all that it said, when it is over and nothing is left.
    async fn end(mut self) -> (Option<i32>, String) {
        self.lines.read_to_string(&mut self.said).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut self.said).unwrap();
        let code = self.child.wait().unwrap().code();
        let place = self.place.path();
        let left = || std::fs::read_dir(place).unwrap().count();
        // At once, if it had a chance to clean up.
        assert!(code.is_none() || left() == 0, "{:?}", std::fs::read_dir(place).unwrap().collect::<Vec<_>>());
        eventually(DEADLINE, "nothing is left", || async { left() == 0 && processes_of(place) == 0 }).await;
        (code, self.said)
    }
}

#[tokio::test]
async fn a_demo_breaks_is_mended_and_ends_with_both_databases_in_agreement() {
    let (code, said) = Program::start(&["--for", "12s"]).end().await;
    assert_eq!(code, Some(0), "{said}");
    for expected in [
        "has failed, an OrderUpdated of order",
        "22001: value too long for type character varying(40)",
        "/replay -H 'content-type: application/json'",
        "ALTER TABLE orders ALTER comment TYPE varchar(80)",
        "has arrived, and so has what waited behind it",
        "error[mapping.column]: the mapping yields \"mail\"",
        "mappings/customer.sql:5:",
        "did you mean \"email\"?",
        "resumed by itself",
        "Both databases agree",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let seconds = said.lines().filter(|line| line.contains("written") && line.contains("lag")).count();
    assert!(seconds >= 8, "a line a second\n{said}");
}

#[tokio::test]
async fn rows_that_were_changed_behind_the_relays_back_are_found() {
    let mut program = Program::start(&["--for", "8s", "--rate", "50"]);
    let psql = program.line(|line| line.contains("/psql-new"));
    let psql = PathBuf::from(psql.split_whitespace().find(|word| word.contains("psql-new")).unwrap());
    program.line(|line| line.contains("written"));
    // By a trigger, so that no later event mends it.
    let by_hand = "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
                   'BEGIN NEW.balance := NEW.balance + 1; RETURN NEW; END';
                   CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION spoil();";
    let changed = Command::new(psql).args(["-c", by_hand]).output().unwrap();
    assert!(changed.status.success(), "{changed:?}");
    let (code, said) = program.end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("The databases differ") && said.contains("legacy, mapped {"), "{said}");
}

#[tokio::test]
async fn ctrl_c_ends_a_demo_and_nothing_is_left() {
    for sign_of_life in ["Starting two", "an OrderUpdated"] {
        let mut program = Program::start(&[]);
        program.line(|line| line.contains(sign_of_life));
        program.signal(Signal::SIGINT);
        let (code, said) = program.end().await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("Ended."), "{said}");
    }
}

#[tokio::test]
async fn a_killed_demo_leaves_nothing() {
    // From its first breath until events flow; most of it is making and starting the servers.
    for milliseconds in [0, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600] {
        let mut program = Program::start(&[]);
        program.line(|line| line.contains("Starting two"));
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        program.signal(Signal::SIGKILL);
        assert_eq!(program.end().await.0, None, "after {milliseconds} ms");
    }
    let mut program = Program::start(&[]);
    program.line(|line| line.contains("written"));
    program.signal(Signal::SIGKILL);
    assert_eq!(program.end().await.0, None);
}

#[tokio::test]
async fn what_is_missing_is_said_with_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, said) = Program::start(&["--listen", &taken.local_addr().unwrap().to_string()]).end().await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("Leave --listen out"), "{said}");
}

#[tokio::test]
async fn a_demo_whose_reader_goes_away_ends() {
    let mut program = Program::start(&[]);
    program.line(|line| line.contains("written"));
    let Program { mut child, lines, place, .. } = program;
    drop(lines);
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap().code());
    assert_eq!(tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap(), Some(0));
    eventually(Duration::from_secs(10), "nothing is left", || async { processes_of(place.path()) == 0 }).await;
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}
