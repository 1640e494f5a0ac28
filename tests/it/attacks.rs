//! The door, tried by hand: requests that no client would send, over bare TCP where a client would not send them. Whatever is
//! tried, nothing is answered with a 5xx (but the 503 of a limit), nothing changes without the right to, and the server lives.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::admin::{Api, tokens};
use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually};

/// A server with tokens in front of events in several states, and what stood in its tables before the attack.
struct Target {
    stage: Stage,
    api: Api,
    address: String,
    before: String,
}

impl Target {
    async fn with(change: impl FnOnce(&mut outbox_relay::config::Config)) -> Target {
        let stage = Stage::with(|config| {
            config.retry.attempts = 1;
            change(config);
        })
        .await;
        let shared = stage.shared().await;
        stage.nameless(1, 1).await;
        stage.user(1, "UserUpdated", "Ada", 2).await;
        stage.user(2, "UserCreated", "Bob", 1).await;
        stage.drain_by_hand(&shared).await;
        stage.thing("waits", 1).await;
        let api = Api::start(&stage.config, tokens(), Some(shared)).await;
        let address = api.client.url.strip_prefix("http://").unwrap().to_owned();
        let before = everything(&stage).await;
        Target { stage, api, address, before }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// What is answered, until the server ends the connection: the statuses, and all of the text.
    async fn raw(&self, request: impl AsRef<[u8]>) -> (Vec<u16>, String) {
        let mut stream = self.connect().await;
        // It may have been answered and closed before all was sent.
        let _ = stream.write_all(request.as_ref()).await;
        let mut said = Vec::new();
        let ended = timeout(DEADLINE, stream.read_to_end(&mut said)).await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(ended.is_ok(), "not ended: {:?}\n{said}", String::from_utf8_lossy(request.as_ref()));
        (statuses(&said), said)
    }

    /// Nothing was changed, and the server answers.
    async fn is_unharmed(&self) {
        assert_eq!(everything(&self.stage).await, self.before);
        self.api.client.get("/healthz").await.ok();
    }
}

/// All that anybody could have changed.
async fn everything(stage: &Stage) -> String {
    let sql = "SELECT concat_ws(E'\\n',
        (SELECT string_agg(o::text, E'\\n' ORDER BY id) FROM outbox o),
        (SELECT string_agg(p::text, E'\\n' ORDER BY p::text) FROM outbox_relay.pause p),
        (SELECT string_agg(a::text, E'\\n' ORDER BY a::text) FROM outbox_relay.audit a))";
    stage.pair.legacy.value(sql).await
}

fn statuses(said: &str) -> Vec<u16> {
    said.split("HTTP/1.").skip(1).filter_map(|answer| answer.get(2..5)?.parse().ok()).collect()
}

/// A change that an admin would be allowed, as a request behind another.
fn smuggled() -> String {
    let body = r#"{"reason": "smuggled"}"#;
    format!(
        "POST /v1/pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all-of-it\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn nothing_is_smuggled_behind_a_request_with_two_ends() {
    let target = Target::with(|_| {}).await;
    let inner = smuggled();
    let outer = |headers: &str, body: &str| {
        format!(
            "POST /v1/events/skip HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all-of-it\r\nContent-Type: \
             application/json\r\n{headers}\r\n\r\n{body}{inner}"
        )
    };
    let (length, chunked) = (format!("Content-Length: {}", inner.len()), "Transfer-Encoding: chunked");
    for (headers, body) in [
        (format!("{length}\r\n{chunked}"), "0\r\n\r\n"),
        (format!("{chunked}\r\n{length}"), "0\r\n\r\n"),
        (format!("Content-Length: 0\r\n{chunked}"), "0\r\n\r\n"),
        (format!("{chunked}\r\n{chunked}"), "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity".to_owned(), "0\r\n\r\n"),
        ("Transfer-Encoding: identity, chunked".to_owned(), "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked".to_owned(), "0\r\n\r\n"),
        ("Transfer-Encoding : chunked".to_owned(), "0\r\n\r\n"),
        ("Transfer-Encoding:\u{b}chunked".to_owned(), "0\r\n\r\n"),
        ("X: y\r\n Transfer-Encoding: chunked".to_owned(), "0\r\n\r\n"),
        ("Content-Length: 2\r\nContent-Length: 0".to_owned(), "{}"),
        ("Content-Length: 2, 0".to_owned(), "{}"),
        ("Content-Length: +2".to_owned(), "{}"),
        ("Content-Length: -1".to_owned(), ""),
        ("Content-Length: 0x2".to_owned(), "{}"),
        ("Content-Length: 99999999999999999999999".to_owned(), "{}"),
        (chunked.to_owned(), "zz\r\n{}\r\n0\r\n\r\n"),
        (chunked.to_owned(), "-2\r\n{}\r\n0\r\n\r\n"),
        (chunked.to_owned(), "FFFFFFFFFFFFFFFFF\r\n{}"),
        (chunked.to_owned(), "2\r\n{}0\r\n\r\n"),
        (chunked.to_owned(), "2;x=\n0\r\n\r\n{}\r\n0\r\n\r\n"),
    ] {
        let (answers, said) = target.raw(outer(&headers, body)).await;
        assert!(answers.len() <= 1 && answers.iter().all(|status| *status < 500), "{headers:?} {body:?}: {said}");
        target.is_unharmed().await;
    }
    target.api.stop().await;
}

#[tokio::test]
async fn a_request_that_is_none_is_refused_and_harms_nobody() {
    let target = Target::with(|_| {}).await;
    let get = |line: &str, headers: &str| {
        format!("{line}\r\nHost: localhost\r\nAuthorization: Bearer all-of-it\r\nConnection: close\r\n{headers}\r\n")
            .into_bytes()
    };
    let of = |line: &str| get(line, "");
    let many = "X-A: 1\r\n".repeat(10_000);
    let long = |n: usize| "x".repeat(n);
    let client_hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[7; 500]].concat();
    let mut wrong = Vec::new();
    for (request, expected) in [
        (of("GET /v1/backlog HTTP/1.1"), &[200u16, 503][..]),
        (get("GET /v1/backlog HTTP/1.1", &format!("X-Long: {}\r\n", long(70_000))), &[431]),
        (get("GET /v1/backlog HTTP/1.1", &format!("{}: x\r\n", long(70_000))), &[431]),
        (get("GET /v1/backlog HTTP/1.1", &many), &[431]),
        (get("GET /v1/backlog HTTP/1.1", &"X-A: 1\r\n".repeat(120)), &[431]),
        (of(&format!("GET /v1/events?cause={} HTTP/1.1", long(70_000))), &[414, 431]),
        (of(&format!("{} / HTTP/1.1", long(40_000))), &[400, 431]),
        (of("TRACE /v1/backlog HTTP/1.1"), &[405]),
        (of("CONNECT example.org:443 HTTP/1.1"), &[404, 405]),
        (of("CONNECT /v1/pause HTTP/1.1"), &[400, 405]),
        (of("OPTIONS * HTTP/1.1"), &[404, 405]),
        (of("DELETE /v1/events/1 HTTP/1.1"), &[405]),
        (of("PATCH /v1/pause HTTP/1.1"), &[405]),
        (of("post /v1/pause HTTP/1.1"), &[405]),
        (of("GET /v1/backlog HTTP/9.9"), &[400]),
        (of("GET /v1/backlog"), &[400]),
        (of("GET  /v1/backlog HTTP/1.1"), &[400]),
        (of("GET v1/backlog HTTP/1.1"), &[400]),
        (of("GET /v1/back\0log HTTP/1.1"), &[400]),
        (get("GET /v1/backlog HTTP/1.1", "X-A: a\0b\r\n"), &[400]),
        (get("GET /v1/backlog HTTP/1.1", "no colon\r\n"), &[400]),
        (get("GET /v1/backlog HTTP/1.1", ": nothing\r\n"), &[400]),
        (get("GET /v1/backlog HTTP/1.1", "X-A: b\rX-B: c\r\n"), &[400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[]),
        (client_hello, &[400]),
        (b"\0\0\0\0\r\n\r\n".to_vec(), &[400]),
        (b"GET /healthz HTTP/1.0\r\n\r\n".to_vec(), &[200]),
        (b"GET /v1/backlog HTTP/1.0\r\n\r\n".to_vec(), &[401]),
    ] {
        let (answers, said) = target.raw(&request).await;
        let shown: String = String::from_utf8_lossy(&request).chars().take(80).collect();
        let is_expected = match answers[..] {
            [] => expected.is_empty() || said.is_empty(),
            [status] => expected.contains(&status),
            _ => false,
        };
        if !is_expected {
            wrong.push(format!("{shown:?}: {answers:?} instead of {expected:?}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    target.is_unharmed().await;
    target.api.stop().await;
}

#[tokio::test]
async fn one_address_cannot_take_all_connections_and_probes_are_answered_all_the_same() {
    let target = Target::with(|config| config.admin.max_connections = 6).await;
    // Answered, and kept open.
    let held = async || {
        let mut stream = target.connect().await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    let three = [held().await, held().await, held().await];
    let admin = target.api.client.with(Some("all-of-it"));
    target.api.client.get("/healthz").await.ok();
    target.api.client.get("/readyz").await.ok();
    assert_eq!(admin.get("/v1/pause").await.problem(503), "too_many_connections");
    assert_eq!(admin.post("/v1/pause", json!({"reason": "x"})).await.problem(503), "too_many_connections");
    // The spare ones are few, too, and nobody keeps one.
    let mut spare = Vec::new();
    for _ in 0..40 {
        spare.push(target.connect().await);
    }
    eventually(DEADLINE, "they are ended, and a probe is answered", || async {
        let mut stream = target.connect().await;
        let sent = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await;
        let mut said = String::new();
        sent.is_ok() && stream.read_to_string(&mut said).await.is_ok() && said.starts_with("HTTP/1.0 200")
    })
    .await;
    drop((three, spare));
    eventually(DEADLINE, "there is room again", || async { admin.get("/v1/pause").await.status == 200 }).await;
    target.is_unharmed().await;
    target.api.stop().await;
}

/// Far above what the server allows itself, which is at most 20 s.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn whoever_is_slow_loses_the_connection_while_others_are_served() {
    let target = Target::with(|_| {}).await;
    let post = "POST /v1/pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all-of-it\r\nContent-Type: application/json\r\n";
    let length = format!("{post}Content-Length: 100\r\n\r\n{{\"reason\"");
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n9\r\n{{\"reason\"\r\n");
    let trickles = async |first: &str, then: &[u8]| {
        let mut stream = target.connect().await;
        stream.write_all(first.as_bytes()).await.unwrap();
        let (mut said, started) = (Vec::new(), Instant::now());
        loop {
            assert!(started.elapsed() < PATIENCE, "{first:?} is kept");
            match timeout(Duration::from_millis(500), stream.read_buf(&mut said)).await {
                Ok(Ok(0) | Err(_)) => return statuses(&String::from_utf8_lossy(&said)),
                Ok(Ok(_)) => {}
                Err(_) => drop(stream.write_all(then).await),
            }
        }
    };
    let unread = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(target.address.parse().unwrap()).await.unwrap();
        let asks = b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
        eventually(PATIENCE, "an answer that nobody reads is given up", || async {
            matches!(stream.try_write(&asks), Err(error) if error.kind() != std::io::ErrorKind::WouldBlock)
        })
        .await;
    };
    let (silent, header, body, chunks, ()) = tokio::join!(
        trickles("", b""),
        trickles("GET /healthz HTTP/1.1\r\n", b"X-A: b\r\n"),
        trickles(&length, b" "),
        trickles(&chunked, b"1\r\n \r\n"),
        unread(),
    );
    assert_eq!((silent, header, body, chunks), (vec![], vec![], vec![408], vec![408]));
    target.is_unharmed().await;
    target.api.stop().await;
}
