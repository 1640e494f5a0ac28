//! Connection strings and names of tables: how they are written, and what is shown of them.

use std::fmt;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use super::problem::nearest;
use super::{DatabaseUrl, TableName};
use crate::redact::Column;

/// Postgres cuts longer names short, silently.
const NAME_BYTES: usize = 63;

impl DatabaseUrl {
    /// Takes what Postgres' own tools take as `postgres://…`. An error never repeats what may be a password.
    pub fn parse(text: &str) -> Result<DatabaseUrl, String> {
        let Some((_, rest)) = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "postgres" | "postgresql"))
        else {
            return Err("it does not begin with postgres:// or postgresql://".to_owned());
        };
        // A password that was not percent-encoded: the rest of it would count as path, query or fragment, and be shown.
        let path = &rest[rest.find(['/', '?', '#']).unwrap_or(rest.len())..];
        if path.contains(['@', '#']) {
            return Err(
                "special characters in the password must be percent-encoded: @ as %40, # as %23, / as %2F, ? as \
                        %3F"
                .to_owned(),
            );
        }
        unknown_tls_parameter(text)?;
        PgConnectOptions::from_str(text).map_err(|error| match error {
            sqlx::Error::Configuration(error) => error.to_string(),
            other => other.to_string(),
        })?;
        Ok(DatabaseUrl(text.to_owned()))
    }

    /// The text, with the password: for connecting, never for printing.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A parameter of the URL by one of its names, the last one given; else the variable that stands in for it.
    pub fn parameter(&self, names: &[&str], variable: &str) -> Option<String> {
        let given = parameters(&self.0).into_iter().rev().find(|(key, _)| names.contains(&key.as_str()));
        given.map(|(_, value)| value).or_else(|| std::env::var(variable).ok())
    }

    /// For people, with `***` for a password: the same, but the server has to prove who it is.
    pub fn verified(&self) -> String {
        let shown = self.redacted();
        let (rest, query) = shown.split_once('?').unwrap_or((&shown, ""));
        let others = query
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.starts_with("sslmode=") && !pair.starts_with("ssl-mode="));
        let mut pairs = vec!["sslmode=verify-full"];
        pairs.extend(others);
        if self.authorities().is_none() {
            pairs.push("sslrootcert=/path/to/its/ca.pem");
        }
        format!("{rest}?{}", pairs.join("&"))
    }

    /// The file with the authorities that are trusted besides the public ones.
    pub fn authorities(&self) -> Option<String> {
        self.parameter(&["sslrootcert", "ssl-root-cert", "ssl-ca"], "PGSSLROOTCERT")
    }

    /// Host and database, without who connects and how: `legacy.internal/monolith`.
    pub fn place(&self) -> String {
        let shown = self.redacted();
        let rest = shown.split_once("://").map_or("", |(_, rest)| rest);
        let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
        rest.rsplit_once('@').map_or(rest, |(_, place)| place).to_owned()
    }

    fn redacted(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else { return "***".to_owned() };
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let authority = match authority.rsplit_once('@') {
            Some((user, host)) => match user.split_once(':') {
                Some((user, _)) => format!("{user}:***@{host}"),
                None => format!("{user}@{host}"),
            },
            None => authority.to_owned(),
        };
        let query = query.map(|query| {
            let pairs = query.split('&').map(|pair| match pair.split_once('=') {
                Some((key, _)) if secret_parameter(key) => format!("{key}=***"),
                _ => pair.to_owned(),
            });
            format!("?{}", pairs.collect::<Vec<_>>().join("&"))
        });
        format!("{scheme}://{authority}{path}{}", query.unwrap_or_default())
    }
}

fn parameters(url: &str) -> Vec<(String, String)> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    serde_urlencoded::from_str(query).unwrap_or_default()
}

/// A parameter about TLS that would be passed over, and with it what the operator wanted to be sure of.
fn unknown_tls_parameter(url: &str) -> Result<(), String> {
    const KNOWN: [&str; 9] =
        ["sslmode", "sslrootcert", "sslcert", "sslkey", "ssl-mode", "ssl-root-cert", "ssl-ca", "ssl-cert", "ssl-key"];
    let keys = parameters(url).into_iter().map(|(key, _)| key);
    let is_about_tls = |key: &String| key.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("ssl"));
    match keys.filter(is_about_tls).find(|key| !KNOWN.contains(&key.as_str())) {
        Some(key) => Err(match nearest(&key, KNOWN) {
            Some(known) => format!("its parameter {key} is not known; did you mean {known}?"),
            None => format!("its parameter {key} is not known here, and would be passed over: take it away"),
        }),
        None => Ok(()),
    }
}

/// Anything but the parameters known to be harmless: a key may itself be percent-encoded (`p%61ssword`).
fn secret_parameter(key: &str) -> bool {
    const HARMLESS: [&str; 16] = [
        "host",
        "hostaddr",
        "port",
        "user",
        "dbname",
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "application_name",
        "statement-cache-capacity",
        "options",
        "connect_timeout",
    ];
    !HARMLESS.contains(&key)
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl TableName {
    /// `table` or `schema.table`, letters as they stand in the catalogue; a part with a dot in it stands in double quotes.
    pub fn parse(text: &str, default_schema: &str) -> Result<TableName, String> {
        let (first, rest) = part(text)?;
        let (schema, table) = match rest {
            None => (default_schema.to_owned(), first),
            Some(rest) => match part(rest)? {
                (table, None) => (first, table),
                _ => {
                    return Err(
                        "it has more than two parts; a name with a dot in it stands in double quotes".to_owned()
                    );
                }
            },
        };
        Ok(TableName { schema, table })
    }

    /// Quoted, for a statement.
    pub fn sql(&self) -> String {
        format!("\"{}\".\"{}\"", self.schema.replace('"', "\"\""), self.table.replace('"', "\"\""))
    }
}

/// `table.column` or `schema.table.column`, `*` for all columns.
pub(super) fn column(text: &str, default_schema: &str) -> Result<Column, String> {
    let mut parts = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (name, after) = part(text)?;
        parts.push(name);
        rest = after;
    }
    let all = text.ends_with(".*");
    let column = |name: String| Some(name).filter(|_| !all);
    match <[String; 3]>::try_from(parts) {
        Ok([schema, table, name]) => Ok(Column { schema, table, column: column(name) }),
        Err(parts) => match <[String; 2]>::try_from(parts) {
            Ok([table, name]) => Ok(Column { schema: default_schema.to_owned(), table, column: column(name) }),
            Err(_) => Err("it must be a table and a column, such as \"users.email\" or \"users.*\"".to_owned()),
        },
    }
}

/// The first part of a name, and what follows its dot.
fn part(text: &str) -> Result<(String, Option<&str>), String> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (name, rest) = text.split_once('.').map_or((text, None), |(name, rest)| (name, Some(rest)));
        if name.contains('"') {
            return Err("a double quote stands inside a name".to_owned());
        }
        return Ok((check_name(name)?, rest));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let Some((before, after)) = rest.split_once('"') else {
            return Err("a double quote is not closed".to_owned());
        };
        name.push_str(before);
        if let Some(after) = after.strip_prefix('"') {
            name.push('"');
            rest = after;
        } else if after.is_empty() {
            return Ok((check_name(&name)?, None));
        } else if let Some(after) = after.strip_prefix('.') {
            return Ok((check_name(&name)?, Some(after)));
        } else {
            return Err("after the closing double quote a dot is expected, or nothing".to_owned());
        }
    }
}

/// A name that Postgres keeps as it is, without quoting rules: as the catalogue shows it.
pub(super) fn check_name(name: &str) -> Result<String, String> {
    if name.is_empty() {
        Err("a name is empty".to_owned())
    } else if name.len() > NAME_BYTES {
        Err(format!("a name is longer than Postgres' {NAME_BYTES} bytes"))
    } else if name.trim() != name || name.contains(char::is_control) {
        Err("a name has a space at its end, or a control character".to_owned())
    } else {
        Ok(name.to_owned())
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, name) in [&self.schema, &self.table].into_iter().enumerate() {
            f.write_str(if n == 0 { "" } else { "." })?;
            if name.contains(['.', '"']) {
                write!(f, "\"{}\"", name.replace('"', "\"\""))?;
            } else {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(url: &str) -> String {
        let url = DatabaseUrl::parse(url).unwrap();
        assert_eq!(format!("DatabaseUrl({url})"), format!("{url:?}"));
        url.to_string()
    }

    #[test]
    fn no_password_is_shown_wherever_it_stands() {
        assert_eq!(shown("postgres://relay@db/app"), "postgres://relay@db/app");
        assert_eq!(shown("postgres://relay:s3cret@db:5432/app"), "postgres://relay:***@db:5432/app");
        assert_eq!(
            shown("postgresql://relay:a%40b:c@db/app?sslmode=require"),
            "postgresql://relay:***@db/app?sslmode=require"
        );
        assert_eq!(shown("postgres://db/app?user=relay&password=s3cret"), "postgres://db/app?user=relay&password=***");
        assert_eq!(shown("postgres://db/app?p%61ssword=s3cret"), "postgres://db/app?p%61ssword=***");
        assert_eq!(shown("postgres://relay:a@b@db/app"), "postgres://relay:***@db/app");
        assert_eq!(shown("postgres:///app?host=/var/run/postgresql"), "postgres:///app?host=/var/run/postgresql");
    }

    #[test]
    fn a_url_that_cannot_work_is_refused_without_repeating_it() {
        for url in [
            "mysql://relay:s3cret@db/app",
            "s3cret",
            "",
            "postgres://relay:s3cret#1@db/app",
            "postgres://relay:12/s3cret@db/app",
            "postgres://relay:12?s3cret@db/app",
            "postgres://relay:s3cret@db:port/app",
            "postgres://relay:s3cret@db/app?sslmode=s3cret",
        ] {
            let error = DatabaseUrl::parse(url).unwrap_err();
            assert!(url == "postgres://relay:s3cret@db/app?sslmode=s3cret" || !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_parameter_about_tls_is_never_passed_over() {
        for (query, words) in [
            ("sslmod=verify-full", "did you mean sslmode?"),
            ("sslmode=verify-full&sslrootcrt=ca", "did you mean sslrootcert?"),
            ("SSLMODE=verify-full", "did you mean sslmode?"),
            ("ssl%6dod=verify-full", "did you mean sslmode?"),
            ("sslmode=verify-full&sslpassword=s3cret", "sslpassword is not known here"),
        ] {
            let error = DatabaseUrl::parse(&format!("postgres://relay@db/app?{query}")).unwrap_err();
            assert!(error.contains(words) && !error.contains("s3cret"), "{error}");
        }
        let url = DatabaseUrl::parse("postgres://relay@db/app?ssl-ca=a&sslmode=verify-full&sslrootcert=%2Fb").unwrap();
        assert_eq!(url.parameter(&["sslrootcert", "ssl-ca"], "NONE"), Some("/b".to_owned()));
    }

    #[test]
    fn table_names_are_taken_as_the_catalogue_shows_them() {
        let table = |schema: &str, table: &str| TableName { schema: schema.to_owned(), table: table.to_owned() };
        let parse = |text: &str| TableName::parse(text, "public");
        assert_eq!(parse("outbox"), Ok(table("public", "outbox")));
        assert_eq!(parse("app.OutboxEvent"), Ok(table("app", "OutboxEvent")));
        assert_eq!(parse(r#""Weird.Name""#), Ok(table("public", "Weird.Name")));
        assert_eq!(parse(r#"a."b.""c""#), Ok(table("a", r#"b."c"#)));
        assert_eq!(parse(r#""a.b"."c""d""#), Ok(table("a.b", r#"c"d"#)));
        for wrong in ["", ".", "a.", ".a", "a.b.c", "a\"b", "\"a\"b", "\"a", "\"a\"\"", "\"\"", " a", &"x".repeat(64)] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(table("a", r#"b"c"#).sql(), r#""a"."b""c""#);
    }

    proptest! {
        #[test]
        fn a_table_name_that_is_printed_is_read_back(schema in "[a-zA-Z_.\"é]{1,12}", name in "[a-zA-Z_.\"é]{1,12}") {
            let table = TableName { schema, table: name };
            prop_assert_eq!(TableName::parse(&table.to_string(), "public"), Ok(table));
        }

        #[test]
        fn no_text_makes_the_parsers_panic_or_the_url_show_its_password(text in ".{0,40}", password in "[a-z]{12}") {
            let _ = TableName::parse(&text, "public");
            if let Ok(url) = DatabaseUrl::parse(&format!("postgres://u:{text}{password}@h/d")) {
                prop_assert!(!url.to_string().contains(&password));
            }
            if let Ok(url) = DatabaseUrl::parse(&text) {
                let _ = url.to_string();
            }
        }
    }
}
