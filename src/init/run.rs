//! Runs steps. What needs a strong lock waits for it a moment only, and tries again: a waiting ALTER TABLE has every later
//! statement of the application queue behind it.

use std::time::{Duration, Instant};

use sqlx::Executor;
use sqlx::postgres::PgPool;

use super::{InitError, Side, Step};
use crate::retry::Pause;
use crate::session::sqlstate;
use crate::sql::trusted;

/// How long a statement may wait for a lock, and so hold the application up.
const GENTLE_LOCK_TIMEOUT: &str = "100ms";
/// The same once it has been tried in vain for [`GENTLE`], and of what a DBA runs by hand.
pub(super) const LOCK_TIMEOUT: &str = "1s";
/// Most transactions are over soon; where there are always some that are not, the lock is had by waiting only.
const GENTLE: Duration = Duration::from_secs(30);
/// How long to try before the step is given up.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn run(side: Side, pool: &PgPool, steps: &[Step]) -> Result<(), InitError> {
    for step in steps {
        tracing::info!(%side, "{}", step.why);
        let done = if step.alone { alone(pool, step).await } else { together(pool, step).await };
        done.map_err(|error| InitError::Database { side, error, doing: Some(step.why.clone()) })?;
    }
    Ok(())
}

async fn together(pool: &PgPool, step: &Step) -> sqlx::Result<()> {
    let started = Instant::now();
    let mut pause = Pause::new(Duration::from_millis(250), Duration::from_secs(3));
    loop {
        let mut transaction = pool.begin().await?;
        let timeout = if started.elapsed() < GENTLE { GENTLE_LOCK_TIMEOUT } else { LOCK_TIMEOUT };
        let script = format!("SET LOCAL lock_timeout = '{timeout}'; SET LOCAL statement_timeout = 0;\n{}", step.sql);
        match transaction.execute(sqlx::raw_sql(trusted(&script))).await {
            Ok(_) => return transaction.commit().await,
            Err(error) => {
                let locked = matches!(sqlstate(&error).as_deref(), Some("55P03" | "40P01"));
                transaction.rollback().await?;
                if !locked || started.elapsed() > PATIENCE {
                    return Err(error);
                }
                tracing::info!("the application holds a lock that this needs: giving way, and trying again");
                tokio::time::sleep(pause.next_pause()).await;
            }
        }
    }
}

/// On a connection that is closed afterwards, for the role's own `statement_timeout` is switched off on it: building an index
/// waits for transactions that are open, and takes what it takes.
async fn alone(pool: &PgPool, step: &Step) -> sqlx::Result<()> {
    let mut connection = pool.acquire().await?.detach();
    connection.execute("SET statement_timeout = 0").await?;
    let done = connection.execute(sqlx::raw_sql(trusted(&step.sql))).await;
    connection.execute("RESET statement_timeout").await?;
    done.map(drop)
}
