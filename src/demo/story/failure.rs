//! Events that the new database refuses: it has grown narrower limits than the monolith ever knew.

use std::io::Write;
use std::time::Duration;

use sqlx::Row as _;

use super::{ANSWERS_WITHIN, Scene};
use crate::demo::http;
use crate::demo::monolith::Monolith;
use crate::demo::screen::{Tone, thousands};
use crate::disposition;
use crate::sql::trusted;

/// Why an event is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Comment,
    Total,
}

impl Cause {
    /// By how much each repair widens the limit; also where it begins.
    fn step(self) -> u32 {
        match self {
            Cause::Comment => 40,
            Cause::Total => 5000,
        }
    }

    fn is(self, limit: u32) -> String {
        match self {
            Cause::Comment => {
                format!("the new orders.comment holds {limit} characters; the monolith's note knows no limit")
            }
            Cause::Total => {
                format!("the new database allows totals up to {}; the monolith any", thousands(limit.into()))
            }
        }
    }

    /// The change of the new database's schema that mends it.
    fn repair(self, limit: u32) -> String {
        let wider = limit + self.step();
        match self {
            Cause::Comment => format!("ALTER TABLE orders ALTER comment TYPE varchar({wider})"),
            Cause::Total => format!(
                "ALTER TABLE orders DROP CONSTRAINT IF EXISTS total_within_limit, ADD CONSTRAINT total_within_limit CHECK (total <= {wider})"
            ),
        }
    }

    /// What the reason of the replay says.
    fn mended(self) -> &'static str {
        match self {
            Cause::Comment => "comment is wide enough now",
            Cause::Total => "the limit is high enough now",
        }
    }

    /// Total and note that go beyond the limit, but not beyond the next one.
    fn beyond(self, limit: u32) -> (Option<i64>, Option<String>) {
        match self {
            Cause::Comment => {
                let words = "Please leave it with the neighbour on the third floor. ";
                let note = words.chars().cycle().take(limit as usize + 20).collect::<String>();
                (None, Some(format!("{}!", note.trim_end())))
            }
            Cause::Total => (Some(i64::from(limit) * 100 + 123_450), None),
        }
    }
}

/// Somebody who has nothing but the page cannot change a table: after this long its owner does.
const OWNER_MENDS_AFTER: Duration = Duration::from_secs(20);

/// How far an event has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Written,
    Failed { since: Duration },
    Mended { since: Duration },
    Replayed,
}

struct Failing {
    event: i64,
    order: String,
    cause: Cause,
    limit: u32,
    progress: Progress,
    /// Somebody else replayed it.
    tried_again: bool,
}

/// All of them.
pub(in crate::demo) struct Failures {
    next: Duration,
    every: Duration,
    made: u32,
    comment_limit: u32,
    total_limit: u32,
    open: Vec<Failing>,
}

impl Failures {
    pub(in crate::demo) fn new(first: Duration, every: Duration) -> Failures {
        Failures {
            next: first,
            every,
            made: 0,
            comment_limit: Cause::Comment.step(),
            total_limit: Cause::Total.step(),
            open: Vec::new(),
        }
    }

    /// Whether none is left to be mended or replayed.
    pub(in crate::demo) fn are_mended(&self) -> bool {
        self.open.is_empty()
    }

    fn limit(&mut self, cause: Cause) -> &mut u32 {
        match cause {
            Cause::Comment => &mut self.comment_limit,
            Cause::Total => &mut self.total_limit,
        }
    }

    /// Has the monolith write one more, if it is time.
    pub(in crate::demo) async fn make(&mut self, now: Duration, monolith: &Monolith) -> anyhow::Result<()> {
        if now < self.next {
            return Ok(());
        }
        let cause = if self.made.is_multiple_of(2) { Cause::Comment } else { Cause::Total };
        let limit = *self.limit(cause);
        let (total, note) = cause.beyond(limit);
        if let Some(unfit) = monolith.outgrow(total, note).await? {
            self.made += 1;
            self.next += self.every;
            self.open.push(Failing {
                event: unfit.event,
                order: unfit.order,
                cause,
                limit,
                progress: Progress::Written,
                tried_again: false,
            });
        }
        Ok(())
    }

    /// Looks what became of them, tells it, and mends what is up to the demo.
    pub(in crate::demo) async fn go_on<W: Write>(&mut self, scene: &mut Scene<'_, W>) -> anyhow::Result<()> {
        let mut open = std::mem::take(&mut self.open);
        for at in 0..open.len() {
            let same_cause = open[..at].iter().filter(|other| other.cause == open[at].cause).count();
            if open[at].go_on(scene, same_cause).await? {
                let failing = &open[at];
                *self.limit(failing.cause) = failing.limit + failing.cause.step();
                open[at].progress = Progress::Written;
                open[at].event = 0;
            }
        }
        open.retain(|failing| failing.event != 0);
        self.open = open;
        Ok(())
    }
}

impl Failing {
    /// One step further; true when it is over.
    async fn go_on<W: Write>(&mut self, scene: &mut Scene<'_, W>, same_cause: usize) -> anyhow::Result<bool> {
        let sql = "SELECT status, coalesce(last_error, '') AS error FROM outbox WHERE id = $1";
        let Some(row) = sqlx::query(sql).bind(self.event).fetch_optional(scene.legacy).await? else { return Ok(true) };
        let status: String = row.try_get("status")?;
        match (status.as_str(), self.progress) {
            ("processed", Progress::Written) => {
                let event = self.event;
                scene.screen.paragraph(&format!(
                    "  Event {event} would have failed as well, had you not mended the cause for good."
                ))?;
                return Ok(true);
            }
            ("processed", _) => {
                let arrived = format!("✓ Event {} has arrived, and so has what waited behind it.", self.event);
                let arrived = scene.screen.tone(Tone::Good, &arrived);
                scene.screen.paragraph(&arrived)?;
                return Ok(true);
            }
            ("skipped", _) => {
                let (event, order) = (self.event, &self.order);
                scene.screen.paragraph(&format!("  Event {event} was skipped: order {order} goes on without it."))?;
                return Ok(true);
            }
            ("failed", Progress::Written) => {
                self.progress = Progress::Failed { since: scene.now };
                self.tell(scene, &row.try_get::<String, _>("error")?, same_cause)?;
            }
            ("failed", Progress::Failed { .. }) if self.tried_again => {
                self.tried_again = false;
                scene.screen.paragraph(&format!(
                    "  Event {} was replayed, and has failed again: the cause is still there.",
                    self.event
                ))?;
            }
            ("failed", Progress::Failed { since })
                if scene.is_up_to_the_demo(since) || scene.now >= since + OWNER_MENDS_AFTER =>
            {
                let mended = Progress::Mended { since: scene.now };
                self.progress = if self.repair(scene).await? { mended } else { self.progress };
            }
            // A moment between the two, so that they can be told apart.
            ("failed", Progress::Mended { since })
                if scene.patience.is_some()
                    && (scene.is_up_to_the_demo(since) || scene.now > since + Duration::from_secs(1)) =>
            {
                let event = self.event;
                let (text, progress) = match http::post(scene.admin, &self.path(), &self.reason()).await {
                    Ok(_) => {
                        let text =
                            format!("  The demo has replayed event {event} over HTTP, with that curl's request.");
                        (text, Progress::Replayed)
                    }
                    Err(error) => (
                        format!("  Event {event} could not be replayed: {error:#}"),
                        Progress::Failed { since: scene.now },
                    ),
                };
                scene.screen.paragraph(&text)?;
                self.progress = progress;
            }
            // The repair came, but was not enough: somebody else changed the schema meanwhile.
            ("failed", Progress::Replayed) => self.progress = Progress::Failed { since: scene.now },
            ("pending" | "retry", Progress::Failed { .. }) => self.tried_again = true,
            _ => {}
        }
        Ok(false)
    }

    fn path(&self) -> String {
        format!("/v1/events/{}/replay", self.event)
    }

    fn reason(&self) -> String {
        format!("{{\"reason\": \"{}\"}}", self.cause.mended())
    }

    fn tell<W: Write>(&self, scene: &mut Scene<'_, W>, error: &str, same_cause: usize) -> anyhow::Result<()> {
        let (event, order, admin) = (self.event, &self.order, scene.admin);
        let headline = format!("✗ Event {event} has failed, an OrderUpdated of order {order}");
        let headline = scene.screen.tone(Tone::Bad, &headline);
        let curl = format!(
            "curl -sX POST http://{admin}{} -H 'content-type: application/json' \\\n         -d '{}'",
            self.path(),
            self.reason()
        );
        if same_cause > 0 {
            scene.screen.paragraph(&format!(
                "{headline}, of the same cause as before. Mend it once, then replay each:\n    {curl}"
            ))?;
            return Ok(());
        }
        let psql = scene.folder.file("psql-new");
        let (psql, repair) = (psql.display(), self.cause.repair(self.limit));
        let why = self.cause.is(self.limit);
        scene.screen.paragraph(&format!(
            "{headline}\n    {error}\n  Later events of order {order} are held behind it; everything else goes on. Look at it:\n    \
             http://{admin}/events/{event}    (in a browser), or curl -s http://{admin}/v1/events/{event}\n  Mend the cause ({why}):\n    {psql} \\\n         -c '{repair}'\n  Then replay it, on its page or with\n    {curl}\n{}",
            scene.who_mends()
        ))?;
        Ok(())
    }

    /// False: the new database does not answer just now.
    async fn repair<W: Write>(&self, scene: &mut Scene<'_, W>) -> anyhow::Result<bool> {
        let repair = self.cause.repair(self.limit);
        let statement = sqlx::raw_sql(trusted(&repair)).execute(scene.new);
        let text = match tokio::time::timeout(ANSWERS_WITHIN, statement).await {
            Ok(Ok(_)) if scene.patience.is_none() => format!(
                "  The new database's owner has mended the cause: {repair}\n  Now replay event {0}, on its page or with that curl: \
                 http://{1}/events/{0}",
                self.event, scene.admin
            ),
            Ok(Ok(_)) => format!("  The demo has mended it, in the new database: {repair}"),
            // Somebody else has changed the schema meanwhile.
            Ok(Err(error)) if !disposition::is_transient(&error) => format!("  The demo could not mend it: {error}"),
            Ok(Err(_)) | Err(_) => return Ok(false),
        };
        scene.screen.paragraph(&text)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_beyond_a_limit_fits_the_next_one() {
        for limit in [40, 80, 400] {
            let length = Cause::Comment.beyond(limit).1.unwrap().chars().count();
            assert!(length > limit as usize && length <= (limit + Cause::Comment.step()) as usize);
        }
        for limit in [5000, 10_000] {
            let cents = Cause::Total.beyond(limit).0.unwrap();
            assert!(cents > i64::from(limit) * 100 && cents <= i64::from(limit + Cause::Total.step()) * 100);
        }
    }
}
