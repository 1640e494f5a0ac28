//! The tokens as they are now: those of files are read again when the files change.
//!
//! Guarantees: a new token in a file holds within seconds, and the one before it, with the sessions at the page that it began, no
//! longer does. A file that cannot be used (gone, empty, not a token) is told at once, as an error in the log; its old token holds for
//! [`GRACE`], for the file may just be being written, and then no more until the file can be used. Where tokens are configured, no
//! loss of them ever opens the API.
//!
//! Does not see that `[[admin.token]]` itself was edited: for that, restart.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::{Token, TokenFile};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);
/// How long a token outlives its file.
const GRACE: Duration = Duration::from_secs(60);

/// Clones are the same.
#[derive(Clone)]
pub(super) struct Tokens {
    any: bool,
    // Replaced as a whole, so that a call works with the same ones from its beginning to its end.
    now: Arc<Mutex<Arc<[Token]>>>,
}

impl Tokens {
    /// What was configured; an empty secret is no secret.
    pub(super) fn new(mut tokens: Vec<Token>) -> Tokens {
        let any = !tokens.is_empty();
        tokens.retain(|token| {
            let usable = !token.secret.is_empty();
            if !usable {
                tracing::error!(token = %token.name, "this token is empty, and is not used");
            }
            usable
        });
        Tokens { any, now: Arc::new(Mutex::new(tokens.into())) }
    }

    /// Whether tokens are needed. True also while none can be used.
    pub(super) fn are_needed(&self) -> bool {
        self.any
    }

    /// Those that are good now.
    pub(super) fn now(&self) -> Arc<[Token]> {
        self.current().clone()
    }

    fn current(&self) -> MutexGuard<'_, Arc<[Token]>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again and again, until `shutdown`.
    pub(super) async fn keep(self, files: Vec<TokenFile>, shutdown: CancellationToken) {
        if files.is_empty() {
            return;
        }
        let began = Instant::now();
        let mut kept = Kept { files: files.into_iter().map(|file| (file, Of::new(began))).collect() };
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            // Files may be on a network.
            let looked = tokio::task::spawn_blocking(move || {
                let found: Vec<_> = kept.files.iter().map(|(file, _)| file.read()).collect();
                (kept, found)
            });
            let found;
            (kept, found) = match looked.await {
                Ok(looked) => looked,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            let (tokens, words) = kept.with(&self.now(), found, Instant::now());
            words.iter().for_each(Word::say);
            *self.current() = tokens;
        }
    }
}

/// What is known of each file.
struct Kept {
    files: Vec<(TokenFile, Of)>,
}

struct Of {
    good_until: Instant,
    trouble: Option<String>,
}

impl Of {
    fn new(now: Instant) -> Of {
        Of { good_until: now + GRACE, trouble: None }
    }
}

/// Something for the log.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Replaced(String),
    Trouble(String),
    Ended(String),
}

impl Word {
    fn say(&self) {
        match self {
            Word::Replaced(token) => tracing::info!(token, "the token in a file has changed: the new one holds"),
            Word::Trouble(why) => {
                tracing::error!("a token's file cannot be used, its old token holds for another minute: {why}");
            }
            Word::Ended(token) => {
                tracing::error!(token, "a token's file could not be used for a minute: its token is no longer taken");
            }
        }
    }
}

impl Kept {
    /// The tokens after the files were read, and what is to be said.
    fn with(
        &mut self,
        tokens: &Arc<[Token]>,
        found: Vec<Result<String, String>>,
        now: Instant,
    ) -> (Arc<[Token]>, Vec<Word>) {
        let mut words = vec![];
        let mut after = tokens.to_vec();
        for ((file, of), found) in self.files.iter_mut().zip(found) {
            let twin = |secret: &String| after.iter().find(|other| other.secret == *secret && other.name != file.name);
            let found = found.and_then(|secret| match twin(&secret) {
                Some(twin) => Err(format!("{} holds the same token as {}", file.path.display(), twin.name)),
                None => Ok(secret),
            });
            let mine = after.iter().position(|token| token.name == file.name);
            match found {
                Ok(secret) => {
                    *of = Of::new(now);
                    let token = Token { name: file.name.clone(), role: file.role, secret };
                    match mine {
                        Some(at) if after[at].secret == token.secret => continue,
                        Some(at) => after[at] = token,
                        None => after.push(token),
                    }
                    words.push(Word::Replaced(file.name.clone()));
                }
                Err(why) => {
                    if of.trouble.as_ref() != Some(&why) {
                        words.push(Word::Trouble(why.clone()));
                        of.trouble = Some(why);
                    }
                    if let Some(at) = mine.filter(|_| of.good_until <= now) {
                        after.remove(at);
                        words.push(Word::Ended(file.name.clone()));
                    }
                }
            }
        }
        let same = after.len() == tokens.len() && after.iter().zip(tokens.iter()).all(|(a, b)| a.secret == b.secret);
        (if same { tokens.clone() } else { after.into() }, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    fn token(name: &str, secret: &str) -> Token {
        Token { name: name.into(), role: Role::Read, secret: secret.into() }
    }

    fn shown(tokens: &[Token]) -> Vec<String> {
        tokens.iter().map(|token| format!("{} {}", token.name, token.secret)).collect()
    }

    #[test]
    fn a_token_follows_its_file_and_outlives_it_for_a_minute() {
        let began = Instant::now();
        let file = TokenFile { name: "board".into(), role: Role::Read, path: "board.token".into() };
        let mut kept = Kept { files: vec![(file, Of::new(began))] };
        let mut tokens: Arc<[Token]> = vec![token("ops", "fixed"), token("board", "old")].into();
        let mut step = |found: Result<&str, &str>, seconds: u64| {
            let found = found.map(str::to_owned).map_err(str::to_owned);
            let (after, words) = kept.with(&tokens, vec![found], began + Duration::from_secs(seconds));
            tokens = after;
            (shown(&tokens), words, kept.files.iter().filter(|(_, of)| of.trouble.is_some()).count())
        };
        let (with, without) =
            (|secret: &str| vec!["ops fixed".to_owned(), format!("board {secret}")], vec!["ops fixed".to_owned()]);
        assert_eq!(step(Ok("old"), 0), (with("old"), vec![], 0));
        assert_eq!(step(Ok("new"), 2), (with("new"), vec![Word::Replaced("board".into())], 0));
        let trouble = || Word::Trouble("it is empty".into());
        assert_eq!(step(Err("it is empty"), 4), (with("new"), vec![trouble()], 1));
        assert_eq!(step(Err("it is empty"), 60), (with("new"), vec![], 1), "told once");
        assert_eq!(step(Err("it is empty"), 62), (without, vec![Word::Ended("board".into())], 1));
        assert_eq!(step(Err("it is empty"), 64).1, vec![], "told once");
        assert_eq!(step(Ok("newer"), 66), (with("newer"), vec![Word::Replaced("board".into())], 0));
        let (after, words, trouble) = step(Ok("fixed"), 68);
        assert_eq!((after, trouble), (with("newer"), 1), "two tokens of one secret would be one");
        assert!(matches!(&words[..], [Word::Trouble(why)] if why.contains("the same token as ops")), "{words:?}");
    }

    #[test]
    fn the_loss_of_all_tokens_opens_nothing() {
        let tokens = Tokens::new(vec![token("board", "x")]);
        *tokens.current() = vec![].into();
        assert!(tokens.are_needed() && !Tokens::new(vec![]).are_needed());
    }
}
