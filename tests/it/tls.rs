//! TLS: to both databases, on real servers, with authorities of the test's own.

use std::process::{Command, Output};

use outbox_relay::demo::server::{Options, Server};
use sqlx::{Connection, Executor};

use crate::support::certificates::{Authority, Certificate, secure};
use crate::support::stage::NEW_SCHEMA;
use crate::support::{DEADLINE, Pair, database, eventually, own_servers, pair};

const ENTITY: &str = "
[[entity]]
aggregate_type = \"User\"
table = \"users\"
key = [\"id\"]
[entity.events]
UserCreated = \"upsert\"
";
const PASSWORD: &str = "hunter2s3cret";

/// A configuration in a folder of its own, with the files that its URLs name.
struct Ground {
    folder: tempfile::TempDir,
}

impl Ground {
    fn new() -> Ground {
        Ground { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.folder.path().join(name), text).unwrap();
        self.path(name)
    }

    fn configure(&self, legacy: &str, new: &str) {
        let text = format!(
            "[legacy]\nurl = \"{legacy}\"\n[new]\nurl = \"{new}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{ENTITY}"
        );
        self.write("outbox-relay.toml", &text);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        command.args(arguments).arg("--config").arg(self.path("outbox-relay.toml"));
        for variable in ["PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs a command to its end: its exit code, and all that it said.
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.command(arguments);
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        assert!(!said.contains(PASSWORD), "{said}");
        (status.code(), said)
    }
}

/// The address of a test's database by another host and with these parameters, and with a password.
fn at(url: &str, host: &str, parameters: &str) -> String {
    let (_, rest) = url.split_once("@127.0.0.1").unwrap();
    format!("postgres://postgres:{PASSWORD}@{host}{rest}?{parameters}")
}

async fn users(pair: &Pair, n: i64) {
    pair.legacy
        .run(&format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', i::text, 'UserCreated', jsonb_build_object('id', i, 'name', 'u', 'version', 1) FROM generate_series(1, {n}) i"
        ))
        .await;
}

#[tokio::test]
async fn events_flow_between_servers_that_prove_who_they_are_and_ask_for_it() {
    let (ground, ca, clients) = (Ground::new(), Authority::new(), Authority::new());
    let mut servers = own_servers().await;
    secure(&mut servers.legacy, &ca.sign(&["localhost"]), None).await;
    let root = ground.write("ca.pem", &ca.pem);
    let full = format!("sslmode=verify-full&sslrootcert={root}");
    clients.sign(&["relay"]).write(ground.folder.path(), "relay");
    let own = format!("&sslcert={}&sslkey={}", ground.path("relay.pem"), ground.path("relay.key"));
    // The tests' own connections to the new one have no certificate to show: its tables first.
    let new = database(&servers.new).await;
    new.run(NEW_SCHEMA).await;
    secure(&mut servers.new, &ca.sign(&["localhost", "127.0.0.1"]), Some(&clients)).await;
    let pair = Pair { legacy: database(&servers.legacy).await, new };
    let (legacy, verified) = (at(&pair.legacy.url, "localhost", &full), at(&pair.new.url, "127.0.0.1", &full));
    ground.configure(&legacy, &verified);
    let (code, said) = ground.run(&["init"]).await;
    assert!(code == Some(2) && said.contains("new: connection requires a valid client certificate"), "{said}");
    ground.configure(&legacy, &format!("{verified}{own}"));
    for arguments in [&["init"][..], &["check"]] {
        let (code, said) = ground.run(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
    }
    users(&pair, 100).await;
    let (code, said) = ground.run(&["run", "--until-empty", "--timeout", "60s"]).await;
    assert_eq!(code, Some(0), "{said}");
    let mut connection = sqlx::PgConnection::connect(&format!("{verified}{own}")).await.unwrap();
    let row = connection
        .fetch_one("SELECT count(*), bool_and(s.ssl) FROM users, pg_stat_ssl s WHERE s.pid = pg_backend_pid()")
        .await
        .unwrap();
    assert_eq!((sqlx::Row::get::<i64, _>(&row, 0), sqlx::Row::get::<bool, _>(&row, 1)), (100, true));
}

/// A server with TLS, and databases on it and on one without.
struct Stranger {
    server: Server,
    ground: Ground,
    without: Pair,
    /// On the server with TLS.
    url: String,
    ca: Authority,
    root: String,
}

impl Stranger {
    async fn new() -> Stranger {
        let (ground, ca) = (Ground::new(), Authority::new());
        let server = Server::start(Options::for_tests("test-tls")).await.unwrap();
        server.create_database("a").await.unwrap();
        let (root, url) = (ground.write("ca.pem", &ca.pem), server.url("a"));
        Stranger { server, ground, without: pair().await, url, ca, root }
    }

    async fn shows(&mut self, certificate: &Certificate) {
        secure(&mut self.server, certificate, None).await;
    }

    /// Its address, with everything proved.
    fn verified(&self) -> String {
        at(&self.url, "localhost", &format!("sslmode=verify-full&sslrootcert={}", self.root))
    }

    /// Whatever asks for this address as the new database, or as the legacy one, is told why not, by this code.
    async fn is_refused(&self, url: &str, code: &str, words: &[&str]) {
        for side in ["new", "legacy"] {
            if side == "new" {
                self.ground.configure(&self.without.legacy.url, url);
            } else {
                self.ground.configure(url, &self.without.new.url);
            }
            for arguments in [&["init"][..], &["run", "--until-empty"], &["status"]] {
                if side == "new" && arguments != ["init"] {
                    // They ask the legacy database first, which has nothing of the relay's.
                    continue;
                }
                let (exit, said) = self.ground.run(arguments).await;
                assert_eq!(exit, Some(2), "{arguments:?}: {said}");
                assert!(
                    said.contains(&format!("error: {side}: ")) && said.contains(&format!("({code})")),
                    "{arguments:?}: {said}"
                );
                assert!(words.iter().all(|words| said.contains(words)), "{arguments:?}, {words:?}: {said}");
                assert_eq!(said.matches(words[0]).count(), 1, "once is enough: {said}");
            }
            let (exit, said) = self.ground.run(&["check"]).await;
            assert_eq!(exit, Some(1), "{said}");
            assert!(said.contains(&format!("problem[{code}]: the {side} database: ")), "{said}");
            assert!(words.iter().all(|words| said.contains(words)), "{words:?}: {said}");
        }
    }
}

#[tokio::test]
async fn a_server_that_does_not_prove_who_it_is_is_refused_with_its_name_the_reason_and_the_remedy() {
    let mut it = Stranger::new().await;
    let other = Authority::new();
    let other_root = it.ground.write("other.pem", &other.pem);
    it.shows(&it.ca.sign(&["db.internal"])).await;
    it.is_refused(&it.verified(), "tls.name", &["is for db.internal, and not for localhost", "subjectAltName"]).await;
    let url = at(&it.url, "127.0.0.1", &format!("sslmode=verify-full&sslrootcert={other_root}"));
    it.is_refused(&url, "tls.authority", &["signed by no authority that is trusted here", "sslrootcert"]).await;
    it.is_refused(
        &at(&it.url, "localhost", "sslmode=verify-full"),
        "tls.authority",
        &["signed by no authority that is trusted here"],
    )
    .await;
    it.shows(&it.ca.sign_expired(&["localhost"])).await;
    it.is_refused(&it.verified(), "tls.expired", &["expired at 2020-01-01", "pg_reload_conf()"]).await;
    it.shows(&it.ca.as_certificate()).await;
    it.is_refused(&it.verified(), "tls.certificate", &["an authority's (CA:TRUE)", "CA:FALSE"]).await;
    let url = at(&it.without.new.url, "localhost", &format!("sslmode=verify-full&sslrootcert={}", it.root));
    it.is_refused(&url, "tls.missing", &["does not offer TLS", "ssl = on"]).await;
    let url = at(&it.url, "localhost", &format!("sslmode=verify-full&sslrootcert={}", it.ground.path("none.pem")));
    it.is_refused(&url, "tls.files", &["none.pem, which cannot be read", "this user may read"]).await;
}

#[tokio::test]
async fn a_relay_that_waits_at_a_certificate_says_so_loudly_and_goes_on_when_it_is_renewed() {
    let mut it = Stranger::new().await;
    it.shows(&it.ca.sign(&["localhost"])).await;
    it.without.new.run(NEW_SCHEMA).await;
    it.ground.configure(&it.verified(), &it.without.new.url);
    let (code, said) = it.ground.run(&["init"]).await;
    assert_eq!(code, Some(0), "{said}");
    it.shows(&it.ca.sign_expired(&["localhost"])).await;
    let log = it.ground.path("log");
    let mut command = it.ground.command(&["run"]);
    command.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut relay = Killed(command.spawn().unwrap());
    let said = || std::fs::read_to_string(&log).unwrap();
    let waits = || async { said().contains("waiting until somebody mends TLS to a database: legacy: ") };
    eventually(DEADLINE, "it says what it waits for", waits).await;
    let text = said();
    assert!(text.contains("ERROR") && text.contains("(tls.expired)") && !text.contains(PASSWORD), "{text}");
    assert!(relay.0.try_wait().unwrap().is_none(), "{text}");
    it.shows(&it.ca.sign(&["localhost"])).await;
    eventually(DEADLINE, "the relay runs", || async { said().contains("the relay runs") }).await;
}

/// A process that is ended with the test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What docs/configuration.md says of each `sslmode`.
#[tokio::test]
async fn only_verify_full_proves_who_the_server_is_and_check_says_so_of_all_others() {
    let mut it = Stranger::new().await;
    it.shows(&it.ca.sign(&["db.internal"])).await;
    let other = it.ground.write("other.pem", &Authority::new().pem);
    let connects =
        async |parameters: &str| sqlx::PgConnection::connect(&at(&it.url, "localhost", parameters)).await.map(drop);
    // Whoever answers is taken, even if the URL names an authority.
    for parameters in ["sslmode=prefer", "sslmode=require", &format!("sslmode=require&sslrootcert={other}")] {
        connects(parameters).await.unwrap_or_else(|error| panic!("{parameters}: {error}"));
    }
    connects(&format!("sslmode=verify-ca&sslrootcert={}", it.root)).await.expect("any host of that authority");
    for parameters in [&format!("sslmode=verify-ca&sslrootcert={other}"), "sslmode=allow", "sslmode=disable"] {
        connects(parameters).await.expect_err(parameters);
    }
    // An address that leads to this machine, though it is not one of its own.
    let far = |url: &str, mode: &str| at(url, "0.0.0.0", mode);
    let found = async |mode: &str| {
        it.ground.configure(&far(&it.without.legacy.url, "sslmode=disable"), &far(&it.url, mode));
        let (_, said) = it.ground.run(&["check"]).await;
        said
    };
    let said = found("sslmode=require").await;
    for words in [
        "warning[tls.unverified]: the connection to the legacy database at 0.0.0.0 is not encrypted (sslmode=disable)",
        "warning[tls.unverified]: the connection to the new database at 0.0.0.0 is encrypted (TLSv1.3), but with sslmode=require nothing proves",
        "?sslmode=verify-full&sslrootcert=/path/to/its/ca.pem\"",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    let said = found(&format!("sslmode=verify-ca&sslrootcert={}", it.root)).await;
    assert!(said.contains("with sslmode=verify-ca any certificate of a trusted authority passes"), "{said}");
    // Neither an address of this machine nor one that was verified is worth a word.
    it.ground.configure(&it.without.legacy.url, &at(&it.url, "localhost", "sslmode=require"));
    let (_, said) = it.ground.run(&["check"]).await;
    assert!(!said.contains("tls."), "{said}");
}
