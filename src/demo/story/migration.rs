//! A mapping that becomes wrong: the owner of the new database renames a column. The relay stops that entity, loses nothing,
//! and goes on when the file is right again.

use std::io::Write;
use std::time::Duration;

use super::{ANSWERS_WITHIN, Scene};
use crate::demo::folder::CUSTOMER;
use crate::demo::screen::{Tone, thousands};
use crate::disposition;
use crate::relay::router::Router;
use crate::sql::trusted;

const RENAME: &str = "ALTER TABLE customers RENAME COLUMN mail TO email";
/// Of the entity that it concerns.
const AGGREGATE_TYPE: &str = "User";
const ENTITY: &str = "customers";
const WRONG: &str = " AS mail,";
const RIGHT: &str = " AS email,";

/// Both, without the comma.
fn words() -> (&'static str, &'static str) {
    (WRONG.trim_end_matches(','), RIGHT.trim_end_matches(','))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    Ahead,
    Renamed,
    Stopped { since: Duration, error: String },
    Over,
}

pub(in crate::demo) struct Migration {
    at: Duration,
    progress: Progress,
    edited: bool,
    /// The most events that waited.
    waited: i64,
}

impl Migration {
    pub(in crate::demo) fn new(at: Duration) -> Migration {
        Migration { at, progress: Progress::Ahead, edited: false, waited: 0 }
    }

    /// Whether nothing is wrong with the mapping (any more).
    pub(in crate::demo) fn is_mended(&self) -> bool {
        matches!(self.progress, Progress::Ahead | Progress::Over)
    }

    /// Renames the column, if it is time.
    pub(in crate::demo) async fn make<W: Write>(&mut self, scene: &mut Scene<'_, W>) -> anyhow::Result<()> {
        if self.progress != Progress::Ahead || scene.now < self.at {
            return Ok(());
        }
        let rename = sqlx::raw_sql(trusted(RENAME)).execute(scene.new);
        let Ok(renamed) = tokio::time::timeout(ANSWERS_WITHIN, rename).await else { return Ok(()) };
        self.progress = match renamed {
            Ok(_) => Progress::Renamed,
            // Renamed already: by us, though we did not hear of it in time, or by somebody else.
            Err(error) if !disposition::is_transient(&error) => Progress::Renamed,
            Err(error) => return Err(error.into()),
        };
        Ok(())
    }

    /// Tells what the relay makes of it, and edits the mapping if that is up to the demo. `waiting`: events of users that are
    /// pending.
    pub(in crate::demo) async fn go_on<W: Write>(
        &mut self,
        scene: &mut Scene<'_, W>,
        waiting: i64,
    ) -> anyhow::Result<()> {
        if self.is_mended() {
            return Ok(());
        }
        self.waited = self.waited.max(waiting);
        let stopped = scene.shared.stops.report().iter().any(|stop| stop.aggregate_type == AGGREGATE_TYPE);
        // The relay says that it stopped; where the mistake stands in the file, its own check of the mapping says.
        let entities = scene.shared.entities();
        let check = Router::compile(&entities, &scene.shared.target);
        let Ok(router) = tokio::time::timeout(ANSWERS_WITHIN, check).await else { return Ok(()) };
        let router = router?;
        let error = router.errors.iter().find(|error| error.entity == ENTITY).map(ToString::to_string);
        match (&self.progress, error) {
            (Progress::Renamed, Some(error)) if stopped => {
                self.tell(scene, &error, waiting)?;
                self.progress = Progress::Stopped { since: scene.now, error };
            }
            (Progress::Stopped { since, error: before }, Some(error)) => {
                let since = *since;
                if *before != error {
                    let text = scene.screen.tone(Tone::Bad, &error);
                    scene
                        .screen
                        .paragraph(&format!("  The relay has read your edit; the mapping is still wrong:\n{text}"))?;
                    self.progress = Progress::Stopped { since, error };
                }
                if !self.edited && scene.is_up_to_the_demo(since) {
                    self.edited = scene.folder.edit(CUSTOMER, WRONG, RIGHT)?;
                    let file = scene.folder.file(CUSTOMER);
                    let file = file.display();
                    let (wrong, right) = words();
                    scene
                        .screen
                        .paragraph(&format!("  The demo has edited {file}: where{wrong} stood, it says{right} now."))?;
                }
            }
            // Whoever was faster has mended the mapping, too.
            (Progress::Renamed, None) if !stopped => self.progress = Progress::Over,
            (_, None) if !stopped => {
                let resumed = "✓ The mapping is right again, and the relay has resumed by itself.";
                let resumed = scene.screen.tone(Tone::Good, resumed);
                let waited = thousands(self.waited);
                scene.screen.paragraph(&format!("{resumed} {waited} events had waited, none was lost."))?;
                self.progress = Progress::Over;
            }
            _ => {}
        }
        Ok(())
    }

    fn tell<W: Write>(&self, scene: &mut Scene<'_, W>, error: &str, waiting: i64) -> anyhow::Result<()> {
        let headline = scene.screen.tone(Tone::Bad, "✗ A mapping does not fit any more.");
        let line = scene.folder.line_of(CUSTOMER, WRONG).map_or(String::new(), |line| format!(":{line}"));
        let file = scene.folder.file(CUSTOMER);
        let file = file.display();
        let (wrong, right) = words();
        let waiting = thousands(waiting);
        let indented = error.replace('\n', "\n    ");
        scene.screen.paragraph(&format!(
            "{headline} The new database's owner has run: {RENAME}\n    {indented}; {waiting} events wait, none has failed\n  \
             Nothing is lost: these events wait in the outbox, orders go on. Say{right} instead of{wrong}, in an editor:\n    \
             {file}{line}\n  or with\n    sed -i.bak 's/{WRONG}/{RIGHT}/' {file}\n  The relay resumes by itself.\n{}",
            scene.who_mends()
        ))?;
        Ok(())
    }
}
