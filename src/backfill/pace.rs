//! How much at once, and how fast: pages whose keys are read in time, chunks whose rows are read and written in about as long as a lane
//! should be held, rows a second, and rest while the legacy database is busy.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::TRIES;

/// A chunk never has more rows than this, or a quarter more. A row of some hundred bytes takes some four thousand while it is on its
/// way (as it came, as a row, as a parameter, as a message), for each worker: what is in memory is chunks, and nothing else of the table.
const MOST: u32 = 2_000;
/// The first one has so many.
const FIRST: u32 = 500;

/// Smaller ones hardly hold a lane for a shorter time: what a chunk costs without any row is then most of it, and on a busy machine
/// a single round trip may wait as long as all of its rows take. Unless it is the rows themselves that are slow, which shows where
/// so many take more than [`SLOW`] times as long as they should: then they are as few as take that long.
const FEW: u32 = 500;
const SLOW: u32 = 4;

/// Keys of a page: at most so many that the keys of two pages take a few megabytes.
const MOST_KEYS: u32 = 100_000;
/// And at least so many: where these are too many, it is not their number.
const FEWEST_KEYS: u32 = 1_000;

/// How many rows the next chunk should have instead of `chunk`, when `rows` were read and written in `worked`, and should be in `aim`.
fn next_chunk(chunk: u32, rows: u32, worked: Duration, aim: Duration) -> u32 {
    let fit = f64::from(rows) * aim.as_secs_f64() / worked.as_secs_f64().max(1e-6);
    let wanted = fit.max((fit * f64::from(SLOW)).min(f64::from(FEW)));
    // A single measurement may be chance: at most twice as many, or half.
    let (low, high) = (f64::from(rows / 2), f64::from(rows) * 2.0);
    // The rest of a page tells little.
    let least = if rows < chunk / 2 && worked < aim * SLOW { FEW.min(chunk) } else { 1 };
    (wanted.clamp(low, high) as u32).clamp(least, MOST)
}

/// When so many rows may go, if `next` was free at the earliest; and when the ones after them may.
fn admit(now: Instant, next: Instant, rows: u32, per_second: u32) -> (Instant, Instant) {
    // What was not used is not saved up: a rest must not end in a rush.
    let at = next.max(now);
    (at, at + Duration::from_secs_f64(f64::from(rows) / f64::from(per_second)))
}

/// The pace of one entity's copy; all of its lanes share it.
pub(super) struct Pace {
    aim: Duration,
    per_second: Option<u32>,
    state: Mutex<State>,
}

struct State {
    chunk: u32,
    /// A page has no more keys than this.
    page: u32,
    /// How often in a row a page that could not be smaller was not read in time.
    late: u32,
    /// How long a chunk waits for answers, however few its rows are.
    way: Duration,
    free_at: Instant,
}

impl Pace {
    pub(super) fn new(aim: Duration, per_second: Option<u32>) -> Pace {
        Pace {
            aim,
            per_second,
            state: Mutex::new(State {
                chunk: FIRST,
                page: MOST_KEYS,
                late: 0,
                way: Duration::ZERO,
                free_at: Instant::now(),
            }),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rows for the next chunk.
    pub(super) fn chunk(&self) -> u32 {
        // About a second's worth at most, or the pace would be one of rests and rushes.
        self.change(|state| state.chunk).min(self.per_second.unwrap_or(MOST)).max(1)
    }

    /// So long of what a chunk is said to take is the way to both databases and back.
    pub(super) fn far(&self, way: Duration) {
        self.change(|state| state.way = way);
    }

    /// So many rows were read and written in so long, without the locks and the commits around it. What does not grow with the rows is
    /// taken off: fewer of them would not hold a lane any shorter.
    pub(super) fn learn(&self, rows: u32, took: Duration) {
        self.change(|state| {
            let worked = took.saturating_sub(state.way);
            // A chunk that was the rest of a page tells little about a full one, unless it took too long.
            if rows >= state.chunk / 2 || worked > self.aim {
                state.chunk = next_chunk(state.chunk, rows.max(1), worked, self.aim);
            }
        });
    }

    /// A chunk was not done in time.
    pub(super) fn too_much(&self) {
        self.change(|state| state.chunk = (state.chunk / 4).max(1));
    }

    /// Keys for the next page: as many as all lanes take in a chunk, for every chunk costs a dozen round trips and two commits however few its
    /// rows are.
    pub(super) fn page(&self, lanes: u16) -> u32 {
        let of_all = self.chunk().saturating_mul(lanes.into()).clamp(FEWEST_KEYS, MOST_KEYS);
        of_all.min(self.change(|state| state.page))
    }

    /// A page's keys were read in time: the next ones may have some more again.
    pub(super) fn page_read(&self) {
        self.change(|state| {
            state.late = 0;
            state.page = (state.page + state.page / 8).min(MOST_KEYS);
        });
    }

    /// So many keys were not read in time, and the next page has half of them; `None`: of a page that was handed out, and stays as it is. True:
    /// there were no fewer to be had, again and again.
    pub(super) fn page_late(&self, keys: Option<u32>) -> bool {
        self.change(|state| match keys {
            Some(keys) if keys > FEWEST_KEYS => {
                state.page = (keys / 2).max(FEWEST_KEYS);
                false
            }
            _ => {
                state.late += 1;
                state.late >= TRIES
            }
        })
    }

    /// When so many rows may be copied.
    pub(super) fn admit(&self, rows: u32) -> Option<Duration> {
        let per_second = self.per_second?;
        let now = Instant::now();
        let at = self.change(|state| {
            let (at, next) = admit(now, state.free_at, rows, per_second);
            state.free_at = next;
            at
        });
        Some(at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_comes_to_hold_its_lane_as_long_as_it_should() {
        let ms = Duration::from_millis;
        for (rows, worked, next) in [
            (1000, ms(50), 1000),
            (1000, ms(25), 2000),
            // At most twice, at least half.
            (1000, ms(1), 2000),
            (1200, ms(400), 600),
            (600, ms(150), FEW),
            // Rows that are slow by themselves.
            (100, ms(5000), 50),
            (1, ms(5000), 1),
            // And are so still, although few of them are done soon enough.
            (100, ms(150), 133),
            (100, ms(25), 200),
            (MOST, ms(1), MOST),
        ] {
            assert_eq!(next_chunk(rows, rows, worked, ms(50)), next, "{rows} {worked:?}");
        }
        // The rest of a page, on a machine that was busy for a moment.
        assert_eq!(next_chunk(1000, 10, ms(60), ms(50)), FEW);
    }

    #[test]
    fn rows_that_are_slow_by_themselves_never_hold_a_lane_much_longer_than_they_should() {
        let (aim, pace) = (Duration::from_millis(50), Pace::new(Duration::from_millis(50), None));
        // Five milliseconds each, and what a chunk costs besides.
        let worked = |rows: u32| Duration::from_millis(u64::from(2 + 5 * rows));
        let mut held = Vec::new();
        for _ in 0..50 {
            let rows = pace.chunk();
            held.push(worked(rows));
            pace.learn(rows, worked(rows));
        }
        assert!(held[10..].iter().all(|held| *held <= aim * SLOW), "{held:?}");
    }

    #[test]
    fn chunks_do_not_shrink_for_a_long_way() {
        let ms = Duration::from_millis;
        let pace = Pace::new(ms(50), None);
        pace.far(ms(400));
        for _ in 0..50 {
            let rows = pace.chunk();
            // Fifty microseconds a row.
            pace.learn(rows, ms(400) + Duration::from_micros(u64::from(rows) * 50));
        }
        assert!((800..1_200).contains(&pace.chunk()), "{}", pace.chunk());
    }

    #[test]
    fn a_page_that_is_not_read_in_time_is_halved_until_three_of_the_fewest_keys_were_not() {
        let pace = Pace::new(Duration::from_millis(50), None);
        let mut late = Vec::new();
        for _ in 0..4 {
            let keys = pace.page(8);
            late.push((keys, pace.page_late(Some(keys))));
        }
        assert_eq!(late, [(4_000, false), (2_000, false), (1_000, false), (1_000, false)]);
        // One that is read makes up for those, and the next has a little more.
        pace.page_read();
        assert_eq!(pace.page(8), 1_125);
        assert_eq!([None, None, Some(FEWEST_KEYS)].map(|keys| pace.page_late(keys)), [false, false, true]);
        for _ in 0..50 {
            pace.page_read();
        }
        assert_eq!((pace.page(8), pace.page(1_000)), (4_000, MOST_KEYS));
    }

    #[test]
    fn rows_a_second_are_kept_and_not_saved_up() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        // The first goes at once, the next after the time that the first is worth.
        assert_eq!(admit(start, start, 100, 1000), (start, after(100)));
        assert_eq!(admit(after(20), after(100), 50, 1000), (after(100), after(150)));
        assert_eq!(admit(after(9000), after(150), 50, 1000), (after(9000), after(9050)));
    }
}
