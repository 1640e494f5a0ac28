//! The network between a relay and a server: it delays, stands still, and is cut in the middle of any message.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::plan::Dice;
use crate::tally::Tally;

/// Which packets are dropped: as with a firewall that forgot a connection, nobody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dropped {
    #[default]
    None,
    ToServer,
    ToRelay,
    Both,
}

/// One for each relay and side.
#[derive(Clone)]
pub struct Proxy {
    pub port: u16,
    weather: Arc<Weather>,
}

struct Weather {
    dice: Mutex<Dice>,
    tally: Tally,
    dropped: watch::Sender<Dropped>,
    /// Each piece is late by up to so many milliseconds.
    late: AtomicU64,
    /// One in so many pieces is the last of its connection.
    cut: AtomicU64,
    /// Likewise of the pieces that hold a COMMIT.
    cut_at_commit: AtomicU64,
    /// How long the server is left to believe that a client that is gone is still there, in milliseconds.
    silence: AtomicU64,
}

impl Proxy {
    /// In front of a server on this machine.
    pub async fn before(port: u16, dice: Dice, tally: Tally) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = listener.local_addr()?.port();
        let weather = Arc::new(Weather {
            dice: Mutex::new(dice),
            tally,
            dropped: watch::Sender::new(Dropped::None),
            late: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            cut_at_commit: AtomicU64::new(0),
            silence: AtomicU64::new(0),
        });
        let proxy = Proxy { port: own, weather: weather.clone() };
        tokio::spawn(async move {
            while let Ok((relay, _)) = listener.accept().await {
                tokio::spawn(connection(relay, port, weather.clone()));
            }
        });
        Ok(proxy)
    }

    /// From now on.
    pub fn drop_packets(&self, which: Dropped) {
        self.weather.dropped.send_replace(which);
    }

    pub fn delay(&self, at_most: Duration) {
        self.weather.late.store(at_most.as_millis() as u64, Ordering::SeqCst);
    }

    /// One in so many pieces, and of the commits; 0: none.
    pub fn cut(&self, one_in: u64, commits_one_in: u64) {
        self.weather.cut.store(one_in, Ordering::SeqCst);
        self.weather.cut_at_commit.store(commits_one_in, Ordering::SeqCst);
    }

    /// A client that goes away is not told of for so long, as when its host has lost power.
    pub fn keep_silent(&self, time: Duration) {
        self.weather.silence.store(time.as_millis() as u64, Ordering::SeqCst);
    }

    pub fn calm(&self) {
        self.drop_packets(Dropped::None);
        self.delay(Duration::ZERO);
        self.cut(0, 0);
        self.keep_silent(Duration::ZERO);
    }
}

/// What happens to a piece of what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// The connection ends before, in the middle of, or after it.
    CutBefore,
    CutWithin,
    CutAfter,
}

impl Weather {
    fn dice(&self) -> std::sync::MutexGuard<'_, Dice> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, to_server: bool, said: &[u8]) -> Fate {
        if to_server && said.windows(8).any(|w| w == b" COMMIT\0") {
            if !self.dice().one_in(self.cut_at_commit.load(Ordering::SeqCst)) {
                return Fate::Arrives;
            }
            let heard = self.dice().one_in(2);
            self.tally.count(if heard {
                "network: cut at COMMIT, after the server heard it"
            } else {
                "network: cut at COMMIT, before the server heard it"
            });
            return if heard { Fate::CutAfter } else { Fate::CutBefore };
        }
        if !self.dice().one_in(self.cut.load(Ordering::SeqCst)) {
            return Fate::Arrives;
        }
        let fate = self.dice().pick(&[Fate::CutBefore, Fate::CutWithin, Fate::CutAfter]);
        self.tally.count(if to_server {
            "network: cut in the middle of a statement"
        } else {
            "network: cut in the middle of an answer"
        });
        fate
    }

    async fn until_through(&self, to_server: bool) {
        let drops = if to_server { [Dropped::ToServer, Dropped::Both] } else { [Dropped::ToRelay, Dropped::Both] };
        // The sender lives as long as this.
        let _ = self.dropped.subscribe().wait_for(|dropped| !drops.contains(dropped)).await;
        let late = self.late.load(Ordering::SeqCst);
        if late > 0 {
            let millis = self.dice().below(late + 1);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
}

async fn connection(relay: TcpStream, port: u16, weather: Arc<Weather>) {
    weather.until_through(true).await;
    // Nobody listens: the relay's connection is closed, which it takes for the same.
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = relay.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_relay, to_relay) = relay.into_split();
    let (from_server, to_server) = server.into_split();
    let over = CancellationToken::new();
    let answers = tokio::spawn(pump(from_server, to_relay, false, weather.clone(), over.clone()));
    pump(from_relay, to_server, true, weather.clone(), over.clone()).await;
    over.cancel();
    let _ = answers.await;
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    to_server: bool,
    weather: Arc<Weather>,
    over: CancellationToken,
) {
    let carried = carry(&mut from, &mut to, to_server, &weather);
    tokio::select! {
        () = carried => {}
        () = over.cancelled() => return,
    }
    let silence = Duration::from_millis(weather.silence.load(Ordering::SeqCst));
    if to_server && !silence.is_zero() {
        weather.tally.count("network: a client vanished without a word");
        tokio::time::sleep(silence).await;
    }
    over.cancel();
}

/// Until one side is gone, or the connection is cut.
async fn carry(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, to_server: bool, weather: &Weather) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let said = &buffer[..n];
        weather.until_through(to_server).await;
        let fate = weather.fate(to_server, said);
        let arrives = match fate {
            Fate::Arrives | Fate::CutAfter => said,
            Fate::CutWithin => &said[..n / 2],
            Fate::CutBefore => &[],
        };
        if to.write_all(arrives).await.is_err() || fate != Fate::Arrives {
            return;
        }
    }
}
