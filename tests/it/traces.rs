//! One trace, from the request that wrote an event to the new database.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::run::Relay;
use crate::support::DEADLINE;
use crate::support::stage::Stage;

/// A collector that keeps all that it is sent.
async fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let received = Arc::new(Mutex::new(Vec::new()));
    let kept = received.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let (mut request, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    request.extend_from_slice(&buffer[..n]);
                    let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
                    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
                    if request.len() >= end + 4 + length.map_or(0, |n| n.trim().parse().unwrap()) {
                        kept.lock().unwrap().append(&mut request);
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    }
                }
            });
        }
    });
    (address, received)
}

async fn user(stage: &Stage, id: i64, traceparent: &str) {
    let sql = format!(
        "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, headers)
         VALUES ('User', '{id}', 'UserCreated', '{{\"id\": {id}, \"name\": \"x\", \"version\": 1}}', '{{\"traceparent\": \"{traceparent}\"}}')"
    );
    stage.pair.legacy.run(&sql).await;
}

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn an_applied_event_is_a_span_of_its_writers_trace() {
    let stage = Stage::new().await;
    let (traced, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let silent = "ffffffffffffffffffffffffffffff01";
    user(&stage, 1, &format!("00-{traced}-{span}-01")).await;
    user(&stage, 2, &format!("00-{silent}-{span}-00")).await;
    stage.user(3, "UserCreated", "x", 1).await;
    let (address, received) = collector().await;
    let mut relay = Relay::start_with(&stage, &["--until-empty"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)]);
    assert_eq!(relay.ended(DEADLINE).await.code(), Some(0), "{}", relay.log());
    let received = received.lock().unwrap();
    let has = |bytes: &[u8]| received.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"post /v1/traces") || has(b"POST /v1/traces"), "{}", String::from_utf8_lossy(&received));
    assert!(has(&hex(traced)) && has(&hex(span)) && has(b"apply User") && has(b"outbox-relay"));
    assert!(!has(&hex(silent)), "the writer of this one records nothing");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_a_line_in_the_log_and_no_event() {
    let stage = Stage::new().await;
    for id in 1..=50 {
        user(&stage, id, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").await;
    }
    // A port that nobody listens on any more.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let address = format!("http://127.0.0.1:{port}");
    let mut relay = Relay::start_with(&stage, &["--until-empty"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)]);
    assert_eq!(relay.ended(DEADLINE).await.code(), Some(0), "{}", relay.log());
    assert_eq!(stage.count("processed").await, 50);
    assert_eq!(
        relay.log().matches("traces are lost until the collector takes them again").count(),
        1,
        "{}",
        relay.log()
    );
}
