//! The tokens of the admin API: from variables, and from files that are read again while it runs.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::problem::{Code, Place};
use super::reader::{PREFIX, Reader};
use super::value::{PHRASE, Word};
use super::{Admin, Role, Token, TokenFile};

const ROLE: Word<Role> = Word(&[("admin", Role::Admin), ("read", Role::Read)]);
/// Shorter ones are refused: with twenty tries and then ten a minute for each address, this much is beyond guessing.
const SHORTEST: usize = 16;
/// Shorter ones are warned of: the output of `openssl rand -hex 16`.
const SHORT: usize = 32;

/// All of them, and the files that some are in.
pub(super) fn read(r: &mut Reader<'_>) -> (Vec<Token>, Vec<TokenFile>) {
    let mut tokens: Vec<(Token, Place)> = vec![];
    let mut files = vec![];
    for (name, role) in [("admin", Role::Admin), ("read", Role::Read)] {
        let variable = format!("{PREFIX}{}_TOKEN", name.to_uppercase());
        let Some((secret, place)) = r.variable(&variable) else { continue };
        let name = name.to_owned();
        let secret = match r.file_of(&variable) {
            Some(path) => {
                files.push(TokenFile { name: name.clone(), role, path });
                secret.trim_end().to_owned()
            }
            None => secret,
        };
        tokens.push((Token { name, role, secret }, place));
    }
    let folder = r.folder();
    for (table, place) in r.list("admin.token") {
        let mut item = r.item("admin.token", table, place.clone());
        let name = item.require("name", PHRASE, "\"alice\"");
        let role = item.require("role", ROLE, "\"read\"");
        let file = item.require("file", PHRASE, "\"alice.token\"");
        let at = item.at("file");
        let read = file.and_then(|file| item.file("file", &file, at));
        if let (Some(name), Some(role), Some((path, text))) = (name, role, read) {
            files.push(TokenFile { name: name.clone(), role, path: folder.join(path) });
            tokens.push((Token { name, role, secret: text.trim_end().to_owned() }, place));
        }
        item.finish();
    }
    report(r, &tokens);
    (tokens.into_iter().map(|(token, _)| token).collect(), files)
}

fn report(r: &mut Reader<'_>, tokens: &[(Token, Place)]) {
    for (n, (token, place)) in tokens.iter().enumerate() {
        let others = &tokens[..n];
        let name = &token.name;
        if let Err(why) = usable(&token.secret) {
            let what = format!("the token \"{name}\" {why}");
            r.report(Code::Value, place.clone(), what, "use the output of `openssl rand -hex 32`, or unset it");
        } else if others.iter().any(|(other, _)| other.name == *name) {
            let what = format!("two tokens are called \"{name}\"");
            let remedy = "give each a name of its own: the audit tells them apart by it";
            r.report(Code::Conflict, place.clone(), what, remedy);
        } else if let Some((other, _)) = others.iter().find(|(other, _)| other.secret == token.secret) {
            let what = format!("the tokens \"{}\" and \"{name}\" have the same secret", other.name);
            r.report(Code::Conflict, place.clone(), what, "give each a secret of its own");
        }
    }
}

/// It travels in a header, and is not to be guessed.
fn usable(secret: &str) -> Result<(), &'static str> {
    if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("is empty, or holds spaces or characters beyond ASCII")
    } else if secret.len() < SHORTEST {
        Err("has fewer than 16 characters")
    } else {
        Ok(())
    }
}

impl TokenFile {
    /// The token that it holds now; an error names the file and never shows what is in it.
    pub fn read(&self) -> Result<String, String> {
        let path = self.path.display();
        let text = std::fs::read_to_string(&self.path).map_err(|error| format!("{path} cannot be read: {error}"))?;
        let secret = text.trim_end();
        usable(secret).map_err(|why| format!("what {path} holds {why}"))?;
        Ok(secret.to_owned())
    }
}

impl Admin {
    /// What is allowed, and not wise; `run` warns of it. A group may read a file: so do Kubernetes and systemd pass them on.
    pub fn weaknesses(&self) -> Vec<String> {
        let short = self.tokens.iter().filter(|token| token.secret.len() < SHORT).map(|token| {
            format!(
                "the token \"{}\" has fewer than {SHORT} characters: use the output of `openssl rand -hex 32`",
                token.name
            )
        });
        let open = self.token_files.iter().filter(|file| is_for_all(&file.path)).map(|file| {
            let path = file.path.display();
            format!(
                "every user of this machine may read or write {path}, the token \"{}\": chmod 600 {path}",
                file.name
            )
        });
        short.chain(open).collect()
    }
}

fn is_for_all(path: &PathBuf) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o006 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn a_short_token_is_refused_and_one_that_is_not_long_is_warned_of() {
        for (secret, is_usable) in [
            ("", false),
            ("0123456789abcde", false),
            ("0123456789abcdef", true),
            ("0123456789 abcdef", false),
            ("0123456789abcdéf", false),
        ] {
            assert_eq!(usable(secret).is_ok(), is_usable, "{secret}");
        }
        let mut admin = super::super::Config::for_databases("postgres://a/b", "postgres://a/c").unwrap().admin;
        let token = |name: &str, secret: String| Token { name: name.to_owned(), role: Role::Read, secret };
        admin.tokens = vec![token("short", "x".repeat(31)), token("long", "x".repeat(32))];
        let warnings = admin.weaknesses();
        assert!(warnings.len() == 1 && warnings[0].starts_with("the token \"short\""), "{warnings:?}");
    }

    #[test]
    fn a_file_that_everybody_may_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut admin = super::super::Config::for_databases("postgres://a/b", "postgres://a/c").unwrap().admin;
        for (mode, warned) in [(0o600, 0), (0o440, 0), (0o644, 1), (0o602, 1)] {
            let path = folder.path().join(format!("{mode:o}"));
            fs::write(&path, "0123456789abcdef\n").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let file = TokenFile { name: "board".to_owned(), role: Role::Read, path };
            admin.token_files = vec![file.clone()];
            assert_eq!(admin.weaknesses().len(), warned, "{mode:o}");
            assert_eq!(file.read().as_deref(), Ok("0123456789abcdef"));
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("board.token");
        let file = TokenFile { name: "board".to_owned(), role: Role::Read, path: path.clone() };
        assert!(file.read().unwrap_err().contains("board.token cannot be read"));
        for text in ["", "\n", "s3cret", "s3cret with spaces in it"] {
            fs::write(&path, text).unwrap();
            let why = file.read().unwrap_err();
            assert!(why.contains("board.token") && !why.contains("s3cret"), "{why}");
        }
    }
}
