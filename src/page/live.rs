//! Tells pages that something has changed, so that they show it. What has changed they ask for as anybody would.
//!
//! Guarantees: a few connections at most, each costs a look at this process's memory a second, none outlives the shutdown, and
//! nothing is said on them but a number.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::{Page, State};

/// Browsers that are told; others ask every few seconds.
pub(super) const CONNECTIONS: usize = 32;
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Told at least this often: ages grow, too.
const AT_LEAST: Duration = Duration::from_secs(10);
/// A browser that signs out or is forgotten is not told for ever: it asks again, with its cookie.
const LASTS: Duration = Duration::from_secs(600);

/// `GET /updates`
pub(super) async fn updates(extract::State(page): State) -> Response {
    let Ok(permit) = page.connections.clone().try_acquire_owned() else {
        let mut response = (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open").into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
        return response;
    };
    let now = Instant::now();
    let hello = VecDeque::from([Event::default().retry(Duration::from_secs(3)).data("hello")]);
    let teller = Teller { page, _permit: permit, since: now, told: now, version: None, hello };
    let stream = stream::unfold(teller, async |mut teller| {
        teller.next().await.map(|event| (Ok::<_, Infallible>(event), teller))
    });
    let alive = KeepAlive::new().interval(Duration::from_secs(20));
    Sse::new(stream).keep_alive(alive).into_response()
}

struct Teller {
    page: Arc<Page>,
    _permit: OwnedSemaphorePermit,
    since: Instant,
    told: Instant,
    version: Option<u64>,
    hello: VecDeque<Event>,
}

impl Teller {
    /// Waits for the next thing to tell; `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        if let Some(hello) = self.hello.pop_front() {
            return Some(hello);
        }
        loop {
            tokio::select! {
                () = self.page.snapshots.shutdown().cancelled() => return None,
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.since.elapsed() > LASTS {
                return None;
            }
            let version = version(&self.page);
            if self.version != Some(version) || self.told.elapsed() >= AT_LEAST {
                self.version = Some(version);
                self.told = Instant::now();
                return Some(Event::default().data(format!("{version:016x}")));
            }
        }
    }
}

/// Another number for anything that this process knows to be otherwise.
fn version(page: &Page) -> u64 {
    let mut hash = DefaultHasher::new();
    page.metrics.reading().processed.hash(&mut hash);
    if let Some(relay) = page.operator.relay() {
        for stop in relay.stops.report() {
            (stop.aggregate_type, stop.stop.message).hash(&mut hash);
        }
        relay.breaker.report().is_some().hash(&mut hash);
        let state = relay.state();
        (state.stopped_lanes, state.slow_lanes, state.source_away.is_some(), state.reload_error).hash(&mut hash);
        state.rows_left.hash(&mut hash);
    }
    page.backlog.peek().map(|backlog| backlog.as_of).hash(&mut hash);
    hash.finish()
}
