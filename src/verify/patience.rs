//! What is asked without a lane only reads and stands alone, so it may be asked once more: a pass may take days, in which a server is
//! restarted, or a connection ended.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::disposition::{self, Disposition};
use crate::retry::Pause;
use crate::session::is_late;

/// How long a server that is away is waited for.
const AWAY: Duration = Duration::from_secs(60);

/// Asks until there is an answer, or an error that does not pass by itself; for a minute at most, and not once it is told to stop. What
/// takes too long takes as long the next time, and is the caller's to make smaller.
pub(super) async fn patiently<T, F>(stop: &CancellationToken, mut ask: impl FnMut() -> F) -> sqlx::Result<T>
where
    F: Future<Output = sqlx::Result<T>>,
{
    let (until, mut pause) = (Instant::now() + AWAY, Pause::new(Duration::from_millis(100), Duration::from_secs(5)));
    loop {
        let answer = ask().await;
        let again = answer.as_ref().is_err_and(passes) && Instant::now() < until;
        if !again || stop.is_cancelled() {
            return answer;
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next_pause()) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Whether an error is none of what was asked, but of a server that is away, or of a connection.
fn passes(error: &sqlx::Error) -> bool {
    disposition::of(error) == Disposition::Transient && !is_late(error) && !disposition::may_be_of_a_value(error)
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::io::ErrorKind;

    use super::*;

    fn broken(kind: ErrorKind) -> sqlx::Error {
        sqlx::Error::Io(kind.into())
    }

    #[tokio::test]
    async fn a_lost_connection_is_asked_again_and_what_takes_too_long_or_is_told_to_stop_is_not() {
        let stop = CancellationToken::new();
        let mut asked = 0;
        let ask = || {
            asked += 1;
            ready(if asked < 3 { Err(broken(ErrorKind::ConnectionReset)) } else { Ok(asked) })
        };
        assert!(matches!(patiently(&stop, ask).await, Ok(3)));
        let mut late = 0;
        let ask = || {
            late += 1;
            ready(Err::<(), _>(broken(ErrorKind::TimedOut)))
        };
        assert!(patiently(&stop, ask).await.is_err());
        stop.cancel();
        let mut stopped = 0;
        let ask = || {
            stopped += 1;
            ready(Err::<(), _>(broken(ErrorKind::ConnectionReset)))
        };
        assert!(patiently(&stop, ask).await.is_err());
        assert_eq!((asked, late, stopped), (3, 1, 1));
    }
}
