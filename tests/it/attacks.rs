//! The door, tried by hand: requests that no client would send, over bare TCP where a client would not send them. Whatever is
//! tried, nothing is answered with a 5xx (but the 503 of a limit), nothing changes without the right to, and the server lives.

use std::time::{Duration, Instant};

use outbox_relay::demo::server::{Options, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::admin::{Api, Client, tokens};
use crate::run::Relay;
use crate::support::stage::Stage;
use crate::support::{DEADLINE, Servers, eventually};

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
        (b"GET /v1/backlog HTTP/1.0\r\n\r\n".to_vec(), &[403]),
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

/// What an injection looks like; each is a word like any other.
const HOSTILE: [&str; 14] = [
    "' OR '1'='1",
    "'; DROP TABLE outbox; --",
    "1) OR (1=1",
    "$$; DELETE FROM outbox; $$",
    "\\'",
    "%27%20OR%201=1",
    "%",
    "_",
    "{}",
    "../../../../etc/passwd",
    "\0",
    "a\r\nSet-Cookie: outbox_relay_session=x",
    "\u{202e}gnp.exe\u{fffd}",
    "<script>alert(1)</script>",
];

#[tokio::test]
async fn what_somebody_looks_for_is_never_taken_for_sql_for_a_path_or_for_markup() {
    let target = Target::with(|_| {}).await;
    let admin = target.api.client.with(Some("all-of-it"));
    let long = "x".repeat(8000);
    let filters =
        ["status", "aggregate_type", "aggregate_id", "event_type", "cause", "ids", "created_after", "limit", "cursor"];
    for hostile in HOSTILE.into_iter().chain([long.as_str()]) {
        for filter in filters {
            let query = serde_urlencoded::to_string([(filter, hostile)]).unwrap();
            let got = admin.get(&format!("/v1/events?{query}")).await;
            match got.status {
                200 => assert_eq!(got.json()["items"], json!([]), "{filter} {hostile:?}"),
                status => assert!([400, 422].contains(&status), "{filter} {hostile:?}: {got:?}"),
            }
            let body = json!({"filter": {filter: hostile}, "reason": hostile, "dry_run": true});
            let got = admin.post("/v1/events/skip", body).await;
            match got.status {
                200 => assert_eq!(got.json()["matched"], 0, "{filter} {hostile:?}"),
                status => assert!([400, 422].contains(&status), "{filter} {hostile:?}: {got:?}"),
            }
            let page = admin.clone().header("Accept", "text/html").get(&format!("/events?{query}")).await;
            assert!(page.status < 500 && !page.text.contains("<script>alert"), "{filter} {hostile:?}: {page:?}");
            assert!(page.headers.get("set-cookie").is_none());
        }
    }
    for cursor in ["9223372036854775808", "-9223372036854775809", "1e3", "0x10", "1;2", "NaN", "", "+"] {
        for list in ["/v1/events", "/v1/audit"] {
            assert_eq!(admin.get(&format!("{list}?cursor={cursor}")).await.problem(400), "malformed", "{cursor}");
        }
    }
    target.is_unharmed().await;
    target.api.stop().await;
}

#[tokio::test]
async fn no_path_leads_out_of_what_is_served_and_no_id_means_another() {
    let target = Target::with(|_| {}).await;
    let mut wrong = Vec::new();
    for path in [
        "/v1/events/9223372036854775808",
        "/v1/events/-9223372036854775809",
        "/v1/events/-1",
        "/v1/events/0",
        "/v1/events/1e0",
        "/v1/events/0x1",
        "/v1/events/1%00",
        "/v1/events/%00",
        "/v1/events/1%20",
        "/v1/events/%ef%bc%91",
        "/v1/events/%27%20OR%201=1",
        "/v1/events/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/events/%ff%fe",
        "/v1/events/00000000-0000-4000-8000-00000000000g",
        "/v1/events/../events/1",
        "/v1/events/1/../1",
        "/v1//events/1",
        "//v1/events/1",
        "/v1/events/1/",
        "/V1/events/1",
        "/v1/events/1;x=y",
        "/v1/events/1%2f",
        "/v1/%65vents/1",
        "/assets/../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%5c..%5cetc%5cpasswd",
        "/.git/config",
        "/outbox-relay.toml",
        "/failures/..%2f..%2fx",
        "/failures/%00",
        "/events/%00",
        "/events/99999999999999999999",
    ] {
        for (method, path) in
            [("GET", path.to_owned()), ("POST", format!("{path}/replay")), ("POST", format!("{path}/skip"))]
        {
            let body = r#"{"reason": "an attack"}"#;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all-of-it\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let (answers, said) = target.raw(request).await;
            let refused = matches!(answers[..], [400..=422]);
            if !refused || said.contains("root:") || said.contains("[legacy]") {
                wrong.push(format!("{method} {path}: {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    target.is_unharmed().await;
    target.api.stop().await;
}

#[tokio::test]
async fn a_body_that_is_not_what_it_should_be_is_refused_whatever_it_is() {
    let target = Target::with(|_| {}).await;
    let deep = |n: usize| ["[".repeat(n), "]".repeat(n)].concat().into_bytes();
    let reason = |text: &[u8]| [b"{\"reason\": \"", text, b"\"}"].concat();
    let json_type = "application/json";
    for (kind, body, expected) in [
        (json_type, reason(b"\xff\xfe"), 400),
        (json_type, reason(b"\xed\xa0\x80"), 400),
        (json_type, reason(br"\ud800"), 400),
        (json_type, reason(br"\u0000"), 400),
        (json_type, reason(b"\0"), 400),
        (json_type, deep(100_000), 400),
        (json_type, [b"{\"filter\": ".as_slice(), &deep(5000), b"}"].concat(), 400),
        (json_type, b"\xef\xbb\xbf{\"reason\": \"x\"}".to_vec(), 400),
        (json_type, br#"{"reason": "x", "reason": "y"}"#.to_vec(), 400),
        (json_type, br#"{"reason": "x"} {"reason": "y"}"#.to_vec(), 400),
        (json_type, br#"{"reason": 1e400}"#.to_vec(), 400),
        (json_type, br#"{"reason": {"$gt": ""}}"#.to_vec(), 400),
        (json_type, br#"{"__proto__": {}, "reason": "x"}"#.to_vec(), 400),
        (json_type, b"null".to_vec(), 400),
        (json_type, Vec::new(), 400),
        (json_type, reason(&b"x".repeat(1 << 20)), 413),
        ("text/plain", reason(b"x"), 415),
        ("application/x-www-form-urlencoded", reason(b"x"), 415),
        ("multipart/form-data; boundary=x", reason(b"x"), 415),
        ("application/jsonx", reason(b"x"), 415),
        ("text/plain; application/json", reason(b"x"), 415),
        ("", reason(b"x"), 415),
    ] {
        let path = if body.starts_with(b"{\"filter\"") { "/v1/events/skip" } else { "/v1/pause" };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all-of-it\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let (answers, said) = target.raw([head.as_bytes(), &body].concat()).await;
        let shown: String = String::from_utf8_lossy(&body).chars().take(60).collect();
        // A large body may be refused, and the connection closed, before the answer could be read.
        assert!(answers == [expected] || (expected == 413 && answers.is_empty()), "{kind:?} {shown:?}: {said}");
    }
    target.is_unharmed().await;
    target.api.stop().await;
}

#[tokio::test]
async fn whom_a_caller_says_to_act_for_is_short_and_plain() {
    let target = Target::with(|_| {}).await;
    let body = r#"{"aggregate_type": "User", "reason": "a test"}"#;
    let request = |actor: &[u8]| {
        let head = b"POST /v1/resume HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all-of-it\r\nX-Actor: ";
        let rest = format!(
            "\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        [head, actor, rest.as_bytes()].concat()
    };
    for refused in [b"a\0b".as_slice(), b"a\x1b[31mb", b"a\x7fb", b"a\nb", b"a\r b"] {
        let (answers, said) = target.raw(request(refused)).await;
        assert!(answers == [400] || answers == [200], "{refused:?}: {said}");
    }
    let long = [b"alice\t\xc2\x9b31m\xe2\x80\xae\xff ".as_slice(), &b"x".repeat(5000)].concat();
    let (answers, said) = target.raw(request(&long)).await;
    assert_eq!(answers, [200], "{said}");
    let actors: Vec<String> =
        target.stage.pair.legacy.value("SELECT coalesce(array_agg(actor), '{}') FROM outbox_relay.audit").await;
    for actor in actors {
        assert!(!actor.contains(|c: char| c.is_control() || c == '\u{202e}'), "{actor:?}");
        assert!(actor.chars().count() <= 210, "{actor:?}");
    }
    target.api.stop().await;
}

/// What nobody needs a token for.
const OPEN: [&str; 5] = ["/healthz", "/readyz", "/v1/openapi.json", "/v1/docs", "/v1/docs.css"];

#[tokio::test]
async fn no_route_shows_or_changes_anything_without_the_right_to() {
    let target = Target::with(|_| {}).await;
    let nobody = &target.api.client;
    let (admin, reader) = (nobody.with(Some("all-of-it")), nobody.with(Some("only-look")));
    let session = async |secret: &'static str| {
        let form = nobody.clone().header("Sec-Fetch-Site", "same-origin");
        let form = form.header("Content-Type", "application/x-www-form-urlencoded");
        let got = form.without_redirects().send("POST", "/sign-in", Some(format!("token={secret}"))).await;
        let cookie = got.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        nobody.clone().header("Cookie", Box::leak(cookie.into_boxed_str()))
    };
    let (admins, readers) = (session("all-of-it").await, session("only-look").await);
    let body = json!({"reason": "an attack"});
    let mut changing = 0;
    let api = outbox_relay::admin::openapi();
    for (path, item) in api["paths"].as_object().unwrap() {
        let parts = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
        let path = &parts.collect::<Vec<_>>().join("/");
        for method in item.as_object().unwrap().keys() {
            if method == "get" {
                let expected = if OPEN.contains(&path.as_str()) { 200 } else { 401 };
                assert_eq!(nobody.get(path).await.status, expected, "{path}");
                assert_eq!(nobody.with(Some("a-guess")).get(path).await.status, expected, "{path}");
                for allowed in [&reader, &readers, &admin, &admins] {
                    let status = allowed.get(path).await.status;
                    assert!([200, 400, 404].contains(&status), "{path}: {status}");
                }
                continue;
            }
            assert_eq!(method, "post", "{path}: how is that to be attacked?");
            changing += 1;
            let sent = async |client: &Client| client.post(path, body.clone()).await;
            assert_eq!(sent(nobody).await.problem(401), "unauthorized", "{path}");
            assert_eq!(sent(&nobody.with(Some("a-guess"))).await.problem(401), "unauthorized", "{path}");
            assert_eq!(sent(&reader).await.problem(403), "read_only", "{path}");
            let own = |client: &Client| client.clone().header("Sec-Fetch-Site", "same-origin");
            assert_eq!(sent(&own(&readers)).await.problem(403), "read_only", "{path}");
            assert_eq!(sent(&admins).await.problem(401), "unauthorized", "{path}: a session says where it comes from");
            for (name, value) in [
                ("Sec-Fetch-Site", "cross-site"),
                ("Sec-Fetch-Site", "same-site"),
                ("Origin", "null"),
                ("Origin", "http://127.0.0.1:1"),
                ("Origin", "https://evil.example"),
            ] {
                for client in [&admin, &admins] {
                    let from_elsewhere = client.clone().header(name, value);
                    assert_eq!(sent(&from_elsewhere).await.problem(403), "cross_site", "{path} {name}: {value}");
                }
            }
            for forged in [
                "outbox_relay_session=",
                "outbox_relay_session=6f7073.99999999999.00",
                "outbox_relay_session=6f7073.1.00; outbox_relay_session=x",
                "outbox_relay_session=\"'<>",
            ] {
                let with_it = own(nobody).header("Cookie", forged);
                assert_eq!(sent(&with_it).await.problem(401), "unauthorized", "{path} {forged}");
            }
        }
    }
    assert!(changing >= 6, "{changing} changing routes were found");
    let form = "reason=an+attack&expected=1&seen=1";
    for path in ["/pause", "/resume", "/events/1/replay", "/events/1/skip", "/failures/x/replay", "/failures/x/skip"] {
        let send = async |client: &Client, header: (&'static str, &'static str)| {
            let form_type = client.clone().header("Content-Type", "application/x-www-form-urlencoded");
            form_type.header(header.0, header.1).send("POST", path, Some(form.to_owned())).await.status
        };
        let own = ("Sec-Fetch-Site", "same-origin");
        assert_eq!((send(nobody, own).await, send(&readers, own).await), (401, 403), "{path}");
        for elsewhere in [("Sec-Fetch-Site", "cross-site"), ("Origin", "null"), ("Origin", "https://evil.example")] {
            assert_eq!(send(&admins, elsewhere).await, 403, "{path} {elsewhere:?}");
        }
        assert_eq!(send(&admins, ("X-Nothing", "said")).await, 401, "{path}");
    }
    target.is_unharmed().await;
    target.api.stop().await;
}

#[tokio::test]
async fn under_a_name_that_is_not_this_servers_a_browser_gets_nothing() {
    let target = Target::with(|config| config.admin.hosts = vec!["relay.example".into()]).await;
    let nobody = &target.api.client;
    let form = nobody.clone().header("Content-Type", "application/x-www-form-urlencoded").without_redirects();
    let signed = |form: Client| form.header("Sec-Fetch-Site", "same-origin");
    let got = signed(form.clone()).send("POST", "/sign-in", Some("token=all-of-it".into())).await;
    let cookie = got.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let admins = nobody.clone().header("Cookie", Box::leak(cookie.into_boxed_str()));
    let evil = |client: &Client| client.clone().header("Host", "evil.example");
    for path in OPEN {
        evil(nobody).get(path).await;
        assert_eq!(evil(nobody).get(path).await.status, 200, "{path}: probes name whomever they like");
    }
    for path in ["/v1/backlog", "/v1/events", "/v1/pause", "/metrics"] {
        for client in [nobody, &admins] {
            assert_eq!(evil(client).get(path).await.problem(403), "host", "{path}");
        }
        assert_eq!(evil(&nobody.with(Some("only-look"))).get(path).await.status, 200, "{path}: no page knows a token");
        for host in ["relay.example", "relay.example:443", "10.1.2.3:8080", "[2001:db8::1]"] {
            assert_eq!(admins.clone().header("Host", host).get(path).await.status, 200, "{path} {host}");
        }
    }
    for path in ["/", "/sign-in", "/events"] {
        let got = evil(&admins).header("Accept", "text/html").get(path).await;
        assert!(got.status == 403 && got.text.contains("admin.hosts"), "{path}: {got:?}");
        assert!(got.headers["content-security-policy"].to_str().unwrap().contains("frame-ancestors 'none'"));
    }
    let got = signed(evil(&form)).send("POST", "/sign-in", Some("token=all-of-it".into())).await;
    assert!(got.status == 403 && got.headers.get("set-cookie").is_none(), "{got:?}");
    for request in [
        "GET http://evil.example/v1/backlog HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "GET http://localhost/v1/backlog HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET /v1/backlog HTTP/1.0\r\n\r\n",
    ] {
        assert_eq!(target.raw(request).await.0, [403], "{request}");
    }
    for request in [
        "GET /v1/backlog HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    ] {
        assert_eq!(target.raw(request).await.0, [400], "{request}");
    }
    target.is_unharmed().await;
    target.api.stop().await;

    // Without tokens, an address is not enough: a page of that address may be anybody's.
    let api = Api::start(&target.stage.config, vec![], Some(target.stage.shared().await)).await;
    for (host, expected) in [("localhost", 200), ("relay.example", 200), ("10.1.2.3", 403), ("evil.example", 403)] {
        let named = api.client.clone().header("Host", host);
        assert_eq!(named.get("/v1/pause").await.status, expected, "{host}");
        assert_eq!(named.get("/healthz").await.status, 200, "{host}");
    }
    let page = api.client.clone().header("Origin", "https://evil.example");
    assert_eq!(page.post("/v1/pause", json!({"reason": "a page in a browser"})).await.problem(403), "cross_site");
    api.stop().await;
    assert_eq!(everything(&target.stage).await, target.before);
}

/// A request with a token and, if so, from another address of this machine: its status, and all that was said.
async fn with_token(target: &Target, from: &str, secret: &str, more: &str) -> (u16, String) {
    asked(target, from, &format!("Authorization: Bearer {secret}\r\n{more}")).await
}

async fn asked(target: &Target, from: &str, headers: &str) -> (u16, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(target.address.parse().unwrap()).await.unwrap();
    let request = format!("GET /v1/pause HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut said)).await.unwrap().unwrap();
    (statuses(&said)[0], said)
}

#[tokio::test]
async fn guesses_are_few_and_lock_out_nobody_elsewhere() {
    let target = Target::with(|config| config.admin.behind_proxy = true).await;
    for (stranger, operator) in [
        (("127.0.0.2", ""), ("127.0.0.1", "")),
        (
            ("127.0.0.1", "X-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n"),
            ("127.0.0.1", "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\n"),
        ),
    ] {
        let mut guess = 0;
        // A try is given back now and then, and a right token may meet it: not every time.
        eventually(DEADLINE, "not even a right token is looked at", || {
            guess += 1;
            let guesses: Vec<String> = (0..30).map(|n| format!("guess-{guess}-{n}")).collect();
            let target = &target;
            async move {
                let mut answers = Vec::new();
                for guess in &guesses {
                    answers.push(with_token(target, stranger.0, guess, stranger.1).await.0);
                }
                assert!(answers.iter().all(|status| [401, 429].contains(status)), "{answers:?}");
                let (status, said) = with_token(target, stranger.0, "all-of-it", stranger.1).await;
                let told = said.to_lowercase().contains("retry-after: ") && said.contains("too_many_guesses");
                assert!(status == 200 || (status == 429 && told), "{said}");
                status == 429 && answers.contains(&429)
            }
        })
        .await;
        assert_eq!(
            with_token(&target, operator.0, "all-of-it", operator.1).await.0,
            200,
            "somebody else is not affected"
        );
        assert_eq!(with_token(&target, operator.0, "a-typo", operator.1).await.0, 401);
        assert_eq!(with_token(&target, operator.0, "all-of-it", operator.1).await.0, 200);
    }
    // The form counts, too; and a script that goes on with its old token is no guesser.
    for _ in 0..100 {
        assert_eq!(with_token(&target, "127.0.0.3", "an-old-token", "").await.0, 401);
    }
    assert_eq!(with_token(&target, "127.0.0.3", "only-look", "").await.0, 200);
    let form = target.api.client.clone().header("Content-Type", "application/x-www-form-urlencoded");
    let form = form.header("Sec-Fetch-Site", "same-origin").header("X-Forwarded-For", "192.0.2.1").without_redirects();
    let mut guess = 0;
    eventually(DEADLINE, "the form says to wait", || {
        guess += 1;
        let sent = form.send("POST", "/sign-in", Some(format!("token=guess-{guess}")));
        async { sent.await.status == 429 }
    })
    .await;
    // A session that is made up is a guess at the token that it would be made with; and the same one again is none.
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 600;
    let made_up = async |from: &str, n: u32| {
        let cookie = format!("Cookie: outbox_relay_session=61646d696e.{until}.{n:064x}\r\n");
        asked(&target, from, &cookie).await.0
    };
    for _ in 0..100 {
        assert_eq!(made_up("127.0.0.7", 1).await, 401);
    }
    let mut answers = Vec::new();
    for n in 0..60 {
        answers.push(made_up("127.0.0.8", n).await);
    }
    assert!(answers.contains(&429) && answers.iter().all(|status| [401, 429].contains(status)), "{answers:?}");
    let metrics = target.api.client.with(Some("all-of-it")).get("/metrics").await.text;
    for why in ["unknown", "limited"] {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("outbox_relay_failed_logins_total{{why=\"{why}\"}}")));
        assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{why}: {metrics}");
    }
    target.is_unharmed().await;
    target.api.stop().await;
}

/// Secrets of a process, which are to be nowhere but where they belong.
const ADMIN: &str = "admins-0123456789abcdef-0123456789abcdef";
const READER: &str = "readers-0123456789abcdef-0123456789abcdef";
const REPLACED: &str = "replaced-0123456789abcdef-0123456789abcdef";
const WRONG: &str = "wrong-0123456789abcdef-0123456789abcdef";

/// A process with a reader's token in a file, when it listens: itself, and somebody who calls it.
async fn process(stage: &Stage, more: &[(&str, &str)]) -> (Relay, Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reader.token");
    std::fs::write(&file, format!("{READER}\n")).unwrap();
    let file = file.to_str().unwrap();
    let tokens = [("OUTBOX_RELAY_ADMIN_TOKEN", ADMIN), ("OUTBOX_RELAY_READ_TOKEN_FILE", file)];
    let relay = Relay::start_with(stage, &["--log-format", "json"], &[&tokens, more].concat());
    eventually(DEADLINE, "it listens", || async { address(&relay.log()).is_some() }).await;
    let client = Client::at(format!("http://{}", address(&relay.log()).unwrap()));
    (relay, client, folder)
}

fn address(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("the admin API and the page listen"))?;
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(line["address"].as_str()?.to_owned())
}

/// The cookie of somebody who signs in.
async fn cookie(client: &Client, secret: &str) -> Option<String> {
    let form = client.clone().header("Content-Type", "application/x-www-form-urlencoded").without_redirects();
    let form = form.header("Sec-Fetch-Site", "same-origin");
    let got = form.send("POST", "/sign-in", Some(format!("token={secret}"))).await;
    Some(got.headers.get("set-cookie")?.to_str().unwrap().split(';').next().unwrap().to_owned())
}

#[tokio::test]
async fn no_token_no_session_and_no_password_is_in_the_log_at_any_level() {
    // With passwords, so that they are sent.
    let options = || Options { password: true, ..Options::for_tests("test-secret") };
    let (legacy, new) = tokio::try_join!(Server::start(options()), Server::start(options())).unwrap();
    let servers = Servers { legacy, new };
    let stage = Stage::on(servers.pair().await, |_| {}).await;
    let password =
        |url: &str| url.split_once("://").unwrap().1.split_once('@').unwrap().0.split_once(':').unwrap().1.to_owned();
    let passwords = [password(&stage.pair.legacy.url), password(&stage.pair.new.url)];
    let (relay, client, _folder) = process(&stage, &[("OUTBOX_RELAY_LOG__FILTER", "trace")]).await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    eventually(DEADLINE, "it works with both databases", || async { stage.count("processed").await == 1 }).await;
    let (admin, reader, wrong) = (client.with(Some(ADMIN)), client.with(Some(READER)), client.with(Some(WRONG)));
    admin.get("/v1/events").await.ok();
    admin.post("/v1/resume", json!({"reason": "a test"})).await.ok();
    assert_eq!(reader.post("/v1/resume", json!({"reason": "a test"})).await.status, 403);
    assert_eq!(wrong.get("/v1/events").await.status, 401);
    assert_eq!(cookie(&client, WRONG).await, None);
    let session = cookie(&client, READER).await.unwrap();
    let signed_in = client.clone().header("Cookie", Box::leak(session.clone().into_boxed_str()));
    assert_eq!(signed_in.get("/events").await.status, 200);
    let log = relay.log();
    assert!(log.contains("\"level\":\"TRACE\"") && log.contains("signed in at the page"), "{log}");
    let session = session.split_once('=').unwrap().1;
    let (mac, until) = (session.rsplit('.').next().unwrap(), session.split('.').nth(1).unwrap());
    assert!(mac.len() == 64 && until.len() > 8);
    for secret in [ADMIN, READER, WRONG, session, mac, &passwords[0], &passwords[1]] {
        assert!(secret.len() > 8, "{secret} is no secret");
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_replaced_in_its_file_holds_without_a_restart_and_the_one_before_no_longer() {
    let stage = Stage::new().await;
    let (relay, client, folder) = process(&stage, &[]).await;
    let (before, after) = (client.with(Some(READER)), client.with(Some(REPLACED)));
    eventually(DEADLINE, "the API answers", || async { before.get("/v1/pause").await.status == 200 }).await;
    let session = cookie(&client, READER).await.unwrap();
    let signed_in = client.clone().header("Cookie", Box::leak(session.into_boxed_str()));
    assert_eq!(signed_in.get("/v1/pause").await.status, 200);
    assert_eq!(after.get("/v1/pause").await.status, 401);
    // As Kubernetes does: the whole file at once.
    let file = folder.path().join("reader.token");
    std::fs::write(folder.path().join("next"), REPLACED).unwrap();
    std::fs::rename(folder.path().join("next"), &file).unwrap();
    eventually(DEADLINE, "the new one holds", || async { after.get("/v1/pause").await.status == 200 }).await;
    assert_eq!(before.get("/v1/pause").await.status, 401);
    assert_eq!(signed_in.get("/v1/pause").await.status, 401, "the session has ended with its token");
    assert_eq!(client.with(Some(ADMIN)).get("/v1/pause").await.status, 200, "others are not affected");
    std::fs::write(&file, "").unwrap();
    eventually(DEADLINE, "a file without a token is told", || async {
        relay.log().contains("a token's file cannot be used")
    })
    .await;
    assert_eq!(after.get("/v1/pause").await.status, 200, "it may just be being written");
    assert!(!relay.log().contains(REPLACED));
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
