//! Just enough of SQL's lexical rules to put an operator's statement into a larger one: where it begins, whether with its own
//! `WITH`, and where it ends.

/// An operator's statement, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Whether it begins with its own `WITH`.
    pub with: Option<With>,
    /// What follows that `WITH [RECURSIVE]`, or all of it; without the closing semicolon.
    pub body: &'a str,
    /// Where `body` begins in the file, in characters.
    pub body_at: usize,
    /// Whether more than one statement stands there.
    pub several: bool,
}

/// The `WITH` that a statement begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// `WITH`
    Plain,
    /// `WITH RECURSIVE`
    Recursive,
}

/// Takes a file's text apart. An empty file, or one of comments, has an empty body.
pub fn parse(text: &str) -> Statement<'_> {
    let tokens = tokens(text);
    let semicolon = tokens.iter().position(|t| t.text == ";");
    let several = semicolon.is_some_and(|at| at + 1 < tokens.len() && tokens[at + 1..].iter().any(|t| t.text != ";"));
    let end = semicolon.map_or(text.len(), |at| tokens[at].start);
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.text.eq_ignore_ascii_case(word));
    let (with, start) = if is(0, "with") && is(1, "recursive") {
        (Some(With::Recursive), tokens[1].start + tokens[1].text.len())
    } else if is(0, "with") {
        (Some(With::Plain), tokens[0].start + tokens[0].text.len())
    } else {
        (None, 0)
    };
    let start = start.min(end);
    Statement { with, body: &text[start..end], body_at: text[..start].chars().count(), several }
}

/// The names that stand before an opening parenthesis, as the server folds them: functions, and what merely looks like one.
pub fn called(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let before = tokens.windows(2).filter(|pair| pair[1].text == "(").map(|pair| pair[0].text);
    before
        .map(|name| if name.starts_with('"') { name.trim_matches('"').to_owned() } else { name.to_lowercase() })
        .collect()
}

struct Token<'a> {
    start: usize,
    text: &'a str,
}

/// Words, strings and punctuation, without white space and comments.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let length = if c.is_whitespace() {
            c.len_utf8()
        } else if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else {
            let length = token_length(rest, c);
            out.push(Token { start: at, text: &rest[..length] });
            length
        };
        at += length;
    }
    out
}

fn token_length(rest: &str, first: char) -> usize {
    if first == '\'' {
        return quoted(rest, '\'', false);
    }
    if first == '"' {
        return quoted(rest, '"', false);
    }
    if (first == 'e' || first == 'E') && rest[1..].starts_with('\'') {
        return 1 + quoted(&rest[1..], '\'', true);
    }
    if first == '$'
        && let Some(length) = dollar_quoted(rest)
    {
        return length;
    }
    let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
    word.max(first.len_utf8())
}

/// A quoted text with its quotes; doubled quotes belong to it, and a backslash hides the next character in `E''`.
fn quoted(rest: &str, quote: char, backslash: bool) -> usize {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if backslash && c == '\\' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return at + 1;
            }
        }
    }
    rest.len()
}

fn dollar_quoted(rest: &str) -> Option<usize> {
    let tag_end = rest[1..].find('$')? + 2;
    let tag = &rest[..tag_end];
    let inner = &tag[1..tag.len() - 1];
    if inner.starts_with(|c: char| c.is_ascii_digit()) || !inner.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    Some(rest[tag_end..].find(tag).map_or(rest.len(), |close| tag_end + close + tag.len()))
}

/// Block comments nest in Postgres.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(text: &str) -> (Option<With>, &str, bool) {
        let statement = parse(text);
        (statement.with, statement.body, statement.several)
    }

    #[test]
    fn a_statement_is_taken_apart() {
        let plain = Some(With::Plain);
        for (text, expected) in [
            ("SELECT 1", (None, "SELECT 1", false)),
            ("SELECT 1;\n", (None, "SELECT 1", false)),
            ("SELECT ';' ; -- done;", (None, "SELECT ';' ", false)),
            ("-- with a comment\nwith x as (select 1) select", (plain, " x as (select 1) select", false)),
            ("/* with /* nested */ ; */ WITH RECURSIVE t AS", (Some(With::Recursive), " t AS", false)),
            ("select $a$;$a$; select 2", (None, "select $a$;$a$", true)),
            ("select E'\\';'", (None, "select E'\\';'", false)),
            ("select \"with;\"", (None, "select \"with;\"", false)),
            ("withdraw", (None, "withdraw", false)),
            ("", (None, "", false)),
        ] {
            assert_eq!(body(text), expected, "{text}");
        }
    }

    /// Parts of a statement that end where they end, whatever stands in them.
    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z_]{1,6} ",
            "[^';\\\\\"]{0,6}".prop_map(|inside| format!(" '{}'';{}' ", inside, inside)),
            "[^\"]{0,6}".prop_map(|inside| format!(" \"{inside};\" ")),
            "[^$]{0,6}".prop_map(|inside| format!(" $a${inside};$$;$a$ ")),
            "[^$]{0,6}".prop_map(|inside| format!(" $${inside};$$ ")),
            "[^'\\\\]{0,6}".prop_map(|inside| format!(" E'{inside};\\';' ")),
            "[^*/]{0,6}".prop_map(|inside| format!(" /* {inside}; /* ; */ ; */ ")),
            "[^\n]{0,6}".prop_map(|inside| format!(" -- {inside};\n ")),
            Just(" ($1 + 2) ".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn a_statement_ends_at_its_own_semicolon(parts in proptest::collection::vec(part(), 0..6), more in part()) {
            let text = format!("SELECT {}", parts.concat());
            prop_assert_eq!(body(&text), (None, text.as_str(), false));
            let (ended, two) = (format!("{text}; -- done;\n ;"), format!("{text}; {more} SELECT"));
            prop_assert_eq!(body(&ended), (None, text.as_str(), false));
            let (_, first, several) = body(&two);
            prop_assert_eq!((first, several), (text.as_str(), true));
        }

        #[test]
        fn no_text_breaks_it(text in "[-a-zA-Z'\"$;/* \\\\\nwéß1]{0,40}") {
            let statement = parse(&text);
            prop_assert!(text.contains(statement.body));
        }
    }
}
