//! TLS: to both databases, on real servers, and of the admin API, with authorities of the test's own.

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use outbox_relay::demo::server::{Options, Server};
use sqlx::{Connection, Executor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, SupportedProtocolVersion};

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
        self.run_with(arguments, &[]).await
    }

    /// With these variables.
    async fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied());
        let ended = tokio::process::Command::from(command).kill_on_drop(true).output();
        let ended = tokio::time::timeout(2 * DEADLINE, ended).await;
        let Output { status, stdout, stderr } = ended.unwrap_or_else(|_| panic!("{arguments:?} does not end")).unwrap();
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
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
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

/// A `run` whose databases are away: the admin API is there before they are.
struct Api {
    ground: Ground,
    relay: Killed,
    address: SocketAddr,
}

const TOKEN: &str = "0123456789abcdef";

impl Api {
    /// With these lines under `[admin]`.
    async fn start(ground: Ground, admin: &str) -> Api {
        let away = "postgres://nobody@127.0.0.1:1/none";
        ground.configure(away, away);
        let file = ground.path("outbox-relay.toml");
        let text = std::fs::read_to_string(&file).unwrap().replace("[admin]\n", &format!("[admin]\n{admin}"));
        std::fs::write(&file, text).unwrap();
        let mut command = ground.command(&["run"]);
        command.env("OUTBOX_RELAY_ADMIN_TOKEN", TOKEN).env("OUTBOX_RELAY_LOG__FILTER", "debug").env("NO_COLOR", "1");
        command.stdout(Stdio::null()).stderr(std::fs::File::create(ground.path("log")).unwrap());
        let relay = Killed(command.spawn().unwrap());
        let said = || std::fs::read_to_string(ground.path("log")).unwrap();
        let listening = || said().lines().find(|line| line.contains("the page listen")).map(str::to_owned);
        eventually(DEADLINE, "the API listens", || async { listening().is_some() }).await;
        let line = listening().unwrap();
        let address = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
        let address = address.parse().unwrap_or_else(|_| panic!("{line}"));
        Api { ground, relay, address }
    }

    /// With a certificate of this authority for localhost.
    async fn secured(ca: &Authority) -> Api {
        let ground = Ground::new();
        ca.sign(&["localhost"]).write(ground.folder.path(), "api");
        Api::start(ground, "tls_cert = \"api.pem\"\ntls_key = \"api.key\"\n").await
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.ground.path("log")).unwrap()
    }

    /// What somebody who trusts this authority, and speaks this much of TLS, is answered; or why they hang up.
    async fn ask(
        &self,
        ca: &Authority,
        versions: &[&'static SupportedProtocolVersion],
        request: &str,
        body: &str,
    ) -> Result<String, String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream =
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| error.to_string())?;
        let request = format!("{request}Host: localhost:{}\r\nConnection: close\r\n\r\n{body}", self.address.port());
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
        Ok(answer)
    }

    async fn is_alive(&self, ca: &Authority) -> bool {
        self.ask(ca, ALL_VERSIONS, "GET /healthz HTTP/1.1\r\n", "")
            .await
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    }
}

#[tokio::test]
async fn the_api_speaks_tls_to_whoever_trusts_its_authority_and_nothing_to_others() {
    let (ca, other) = (Authority::new(), Authority::new());
    let mut api = Api::secured(&ca).await;
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let answer = api.ask(&ca, versions, "GET /healthz HTTP/1.1\r\n", "").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    let refused = api.ask(&other, ALL_VERSIONS, "GET /healthz HTTP/1.1\r\n", "").await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    // Somebody who says nothing keeps nobody waiting.
    let silent = TcpStream::connect(api.address).await.unwrap();
    assert!(api.is_alive(&ca).await);
    // Whoever speaks plain HTTP gets no HTTP, and the connection closed.
    for said in [
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".as_bytes(),
        b"\x16\x03\x01\xff\xff garbage that is no handshake",
        b"\x16",
    ] {
        let mut plain = TcpStream::connect(api.address).await.unwrap();
        plain.write_all(said).await.unwrap();
        // It may be closed already.
        let _ = plain.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut answer)).await.expect("it is closed");
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{read:?} {answer:?}");
    }
    assert!(api.is_alive(&ca).await);
    drop(silent);
    assert!(api.relay.0.try_wait().unwrap().is_none());
    // Nobody's mistake but theirs: not more than a word at `debug`.
    eventually(DEADLINE, "a word", || async { api.said().matches("came to nothing").count() >= 3 }).await;
    let log = api.said();
    assert!(!log.lines().any(|line| line.contains(" ERROR ") || line.contains("panicked")), "{log}");
    // The session's cookie is not for plain HTTP.
    let form = format!("token={TOKEN}");
    // Even from a browser that does not say where the form stood.
    let request = format!(
        "POST /sign-in HTTP/1.1\r\nSec-Fetch-Site: same-origin\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
        form.len()
    );
    let answer = api.ask(&ca, ALL_VERSIONS, &request, &form).await.unwrap();
    let cookie = answer.lines().find(|line| line.starts_with("set-cookie: ")).unwrap_or_else(|| panic!("{answer}"));
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    // And the health check of the image still works.
    let listens = [("OUTBOX_RELAY_ADMIN__LISTEN", &*api.address.to_string())];
    let (code, said) = api.ground.run_with(&["alive"], &listens).await;
    assert!(code == Some(0) && said.contains("alive"), "{said}");
    drop(api.relay);
    let (code, said) = api.ground.run_with(&["alive"], &listens).await;
    assert_eq!(code, Some(1), "{said}");
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_ended() {
    let ca = Authority::new();
    let ground = Ground::new();
    ca.sign(&["localhost"]).write(ground.folder.path(), "api");
    let api = Api::start(ground, "tls_cert = \"api.pem\"\ntls_key = \"api.key\"\nmax_connections = 1\n").await;
    // The first takes the only usual place; those beside it get a few seconds.
    let _first = TcpStream::connect(api.address).await.unwrap();
    for said in [&b""[..], b"\x16\x03\x01\x02\x00"] {
        let mut never = TcpStream::connect(api.address).await.unwrap();
        never.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, never.read_to_end(&mut answer)).await;
        assert!(read.is_ok() && answer.is_empty(), "{read:?} {answer:?}");
    }
    assert!(api.is_alive(&ca).await);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart_and_a_wrong_one_is_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let api = Api::secured(&old).await;
    assert!(api.is_alive(&old).await && !api.is_alive(&new).await);
    new.sign(&["localhost"]).write(api.ground.folder.path(), "api");
    eventually(DEADLINE, "the renewed one is shown", || api.is_alive(&new)).await;
    assert!(!api.is_alive(&old).await && api.said().contains("the admin API shows a renewed certificate"));
    // A key of another certificate.
    api.ground.write("api.key", &old.sign(&["localhost"]).key);
    let words = "the changed certificate of the admin API cannot be used, the last good one goes on: ";
    eventually(DEADLINE, "it says so", || async { api.said().contains(words) }).await;
    assert!(api.is_alive(&new).await);
    old.sign(&["localhost"]).write(api.ground.folder.path(), "api");
    eventually(DEADLINE, "it is mended", || api.is_alive(&old)).await;
    assert_eq!(api.said().matches(words).count(), 1, "{}", api.said());
}

#[tokio::test]
async fn what_would_not_be_tls_does_not_start() {
    let (ground, ca) = (Ground::new(), Authority::new());
    ca.sign(&["localhost"]).write(ground.folder.path(), "api");
    ca.sign(&["localhost"]).write(ground.folder.path(), "other");
    let away = "postgres://nobody@127.0.0.1:1/none";
    ground.configure(away, away);
    let path = |name| ground.path(name);
    let refused = async |certificate: &str, key: &str, words: &[&str]| {
        let variables = [("OUTBOX_RELAY_ADMIN__TLS_CERT", certificate), ("OUTBOX_RELAY_ADMIN__TLS_KEY", key)];
        let (code, said) = ground.run_with(&["run"], &variables).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
    };
    let (pem, key) = (path("api.pem"), path("api.key"));
    let mismatch = format!("the key in {} is not that of the certificate in {pem}", path("other.key"));
    refused("api.pem", "other.key", &[&mismatch, "admin.tls_cert and admin.tls_key"]).await;
    refused("none.pem", "api.key", &[&path("none.pem"), "cannot be read: No such file"]).await;
    refused("api.pem", "none.key", &[&path("none.key"), "cannot be read: No such file"]).await;
    refused("api.key", "api.key", &[&key, "no certificate in PEM form"]).await;
    refused("api.pem", "api.pem", &[&pem, "no private key in PEM form"]).await;
    // In the clear, to whoever is on the network.
    let open = [("OUTBOX_RELAY_ADMIN_TOKEN", TOKEN), ("OUTBOX_RELAY_ADMIN__LISTEN", "0.0.0.0:0")];
    let (code, said) = ground.run_with(&["run"], &open).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("set admin.tls_cert and admin.tls_key, or admin.behind_proxy = true"), "{said}");
}
