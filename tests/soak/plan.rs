//! What a seed decides: the shape of the run, and everybody's dice. It repeats who does what, for how long and in which order; it
//! cannot repeat how the machine's scheduler mixes them.

use std::fmt;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Small and repeatable: SplitMix64.
pub struct Dice(u64);

impl Dice {
    /// Everybody has dice of their own, so that one who is slower does not change what the others throw.
    pub fn of(seed: u64, who: &str) -> Dice {
        // FNV-1a.
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Dice(who.bytes().fold(0xcbf2_9ce4_8422_2325, fold) ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times; never, if `n` is 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    /// Sixteen bytes that nobody else has thrown.
    pub fn uuid(&mut self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes((u128::from(self.next()) << 64 | u128::from(self.next())).to_be_bytes())
            .into_uuid()
    }

    /// Waits so long, or until it is over.
    pub async fn rest(&mut self, from: u64, to: u64, over: &CancellationToken) {
        pause(self.millis(from, to), over).await;
    }
}

/// Waits so long, or until it is over.
pub async fn pause(time: Duration, over: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = over.cancelled() => {}
    }
}

/// Cards that are all drawn once before any is drawn again: even a short run meets every kind.
pub struct Deck<T> {
    all: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    pub fn of(all: &[T]) -> Deck<T> {
        Deck { all: all.to_vec(), left: Vec::new() }
    }

    pub fn draw(&mut self, dice: &mut Dice) -> T {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
        }
        self.left.swap_remove(dice.below(self.left.len() as u64) as usize)
    }
}

/// What a run is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub seconds: u64,
    pub lanes: u16,
    pub batch: u32,
    pub workers: u16,
    pub instances: u16,
    pub prepared_statements: bool,
    /// Databases fail over, and the logs reach back a minute; or, by every fourth seed, they do not, and retention is on the heels
    /// of the relay.
    pub failovers: bool,
}

/// For one batch; short, so that there is time to meet it often.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// A snapshot older than this does not take over: the promise ends at `replica_lag`, and an outage may come on top.
pub const OLDEST_SNAPSHOT: Duration = Duration::from_secs(25);

impl Plan {
    pub fn of(seed: u64, seconds: u64) -> Plan {
        let mut dice = Dice::of(seed, "the plan");
        Plan {
            seed,
            seconds,
            lanes: dice.pick(&[1, 4, 16, 64]),
            batch: dice.pick(&[3, 20, 200, 1000]),
            workers: dice.pick(&[1, 2, 4]),
            instances: dice.pick(&[2, 3, 4]),
            prepared_statements: !dice.one_in(3),
            failovers: seed % 4 != 3,
        }
    }

    /// The configuration's `relay.replica_lag`.
    pub fn replica_lag(&self) -> Duration {
        Duration::from_secs(if self.failovers { 60 } else { 1 })
    }

    pub fn dice(&self, who: &str) -> Dice {
        Dice::of(self.seed, who)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, seconds, lanes, batch, workers, instances, prepared_statements, failovers } = self;
        let prepared = if *prepared_statements { "prepared" } else { "unprepared" };
        let failovers = if *failovers { "failovers" } else { "no failovers, retention after a second" };
        write!(
            f,
            "SEED={seed} SECONDS={seconds}: {instances} processes of {workers} workers, {lanes} lanes, batches of {batch}, \
             {prepared} statements, {failovers}"
        )
    }
}

#[test]
fn a_seed_gives_the_same_plan_and_everybody_their_own_dice() {
    assert_eq!(Plan::of(7, 60), Plan::of(7, 60));
    let throws = |seed, who| {
        let mut dice = Dice::of(seed, who);
        [(); 8].map(|()| dice.below(1000))
    };
    assert_eq!(throws(7, "a"), throws(7, "a"));
    assert_ne!(throws(7, "a"), throws(7, "b"));
    assert_ne!(throws(7, "a"), throws(8, "a"));
    let (mut deck, mut dice) = (Deck::of(&[1, 2, 3, 4]), Dice::of(1, "deck"));
    let mut drawn = [(); 4].map(|()| deck.draw(&mut dice));
    drawn.sort_unstable();
    assert_eq!(drawn, [1, 2, 3, 4]);
}
