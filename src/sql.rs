//! The SQL files under `sql/`, and the names that are put into them.
//!
//! A file names what the operator may have called otherwise in braces: `{outbox}`, `{status}`. [`render`] puts quoted
//! identifiers and literals there; nothing else is ever pasted into a statement. Values are always parameters.

use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::{Query, QueryScalar};

/// A text that is JSON, as what was kept in it.
pub fn from_json<T: DeserializeOwned>(text: &str) -> sqlx::Result<T> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// `"name"`, quoted so that any name works.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'text'`, quoted so that any text works whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// An operator of a type whose own are in that schema, which need not be on the search path; as it is written, of a built-in type.
pub fn operator(schema: Option<&str>, name: &str) -> String {
    match schema {
        None | Some("pg_catalog") => name.to_owned(),
        Some(schema) => format!("OPERATOR({}.{name})", ident(schema)),
    }
}

/// A file with its `{operators}`, the schema that [`operator`] is given, of a column `a` of `pg_attribute`.
pub fn with_operators(file: &str) -> String {
    render(file, &[("operators", include_str!("../sql/operators.sql").to_owned())])
}

/// `(a, b) > (x, y)`, for `>` and `<=`. Where the columns' operators are in several schemas, which no comparison of rows can name, column
/// by column: first by what the index can be walked by, then by what decides.
pub fn beyond(key: &[String], comparison: &str, values: &[String], schemas: &[String]) -> String {
    let of = |column: usize| schemas.get(column).map(String::as_str);
    if schemas.windows(2).all(|two| two[0] == two[1]) {
        return format!("({}) {} ({})", key.join(", "), operator(of(0), comparison), values.join(", "));
    }
    let pairs: Vec<(&String, &String)> = key.iter().zip(values).collect();
    let one = |n: usize, name: &str| {
        pairs.get(n).map_or_else(String::new, |(column, value)| format!("{column} {} {value}", operator(of(n), name)))
    };
    // Only the last column may be equal, and of a comparison that takes that.
    let strict = comparison.trim_end_matches('=');
    let last = pairs.len().saturating_sub(1);
    let decided = (0..last)
        .rev()
        .fold(one(last, comparison), |rest, n| format!("({} OR ({} AND {rest}))", one(n, strict), one(n, "=")));
    format!("({} AND {decided})", one(0, &format!("{strict}=")))
}

/// The file's text with every `{name}` replaced. A name that is not in the list is a bug, and is left for the server to
/// refuse: a test PREPAREs every file.
pub fn render(file: &str, names: &[(&str, String)]) -> String {
    let mut out = String::with_capacity(file.len() * 2);
    let mut rest = file;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let tail = &rest[open..];
        let replaced = tail.find('}').and_then(|close| {
            let (_, value) = names.iter().find(|(name, _)| *name == &tail[1..close])?;
            out.push_str(value);
            Some(close + 1)
        });
        rest = match replaced {
            Some(next) => &tail[next..],
            None => {
                out.push('{');
                &tail[1..]
            }
        };
    }
    out.push_str(rest);
    out
}

/// A statement that is sent under a name, to be planned once a connection, or without: behind PgBouncer in transaction mode the
/// next transaction has another server, where the name means nothing, or something else.
pub fn query<'q>(sql: &str, prepared: bool) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(trusted(sql)).persistent(prepared)
}

/// Likewise, for one column.
pub fn query_scalar<'q, T>(sql: &str, prepared: bool) -> QueryScalar<'q, Postgres, T, PgArguments>
where
    (T,): for<'r> sqlx::FromRow<'r, PgRow>,
{
    sqlx::query_scalar(trusted(sql)).persistent(prepared)
}

/// What lies one after the other: how many come before each, and how many each has.
pub(crate) fn spans(counts: impl Iterator<Item = usize>) -> (Vec<i32>, Vec<i32>) {
    let counts: Vec<i32> = counts.map(|count| i32::try_from(count).unwrap_or(i32::MAX)).collect();
    let before = counts.iter().scan(0, |before, count| {
        let skipped = *before;
        *before += count;
        Some(skipped)
    });
    (before.collect(), counts)
}

/// Text whose only variable parts came through [`ident`], [`literal`] or a number.
pub fn trusted(sql: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(sql.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_in_and_quoted() {
        let names = [("outbox", ident("od\"d")), ("pending", literal("it's \\ pending"))];
        assert_eq!(
            render("SELECT {outbox}, {pending}, '{}'", &names),
            "SELECT \"od\"\"d\", E'it''s \\\\ pending', '{}'"
        );
    }

    #[test]
    fn what_lies_one_after_the_other_is_found_again() {
        assert_eq!(spans([2, 1, 3].into_iter()), (vec![0, 2, 3], vec![2, 1, 3]));
        assert_eq!(spans([].into_iter()), (vec![], vec![]));
    }

    #[test]
    fn keys_are_compared_by_the_operators_of_their_own_types() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let compared = |schemas: &[&str], comparison: &str| {
            let (key, values) = (["a", "b", "c"], ["x", "y", "z"]);
            let n = schemas.len();
            beyond(&texts(&key[..n]), comparison, &texts(&values[..n]), &texts(schemas))
        };
        assert_eq!(compared(&["pg_catalog"], ">"), "(a) > (x)");
        assert_eq!(compared(&["pg_catalog", "pg_catalog"], "<="), "(a, b) <= (x, y)");
        assert_eq!(compared(&["my own"], ">"), "(a) OPERATOR(\"my own\".>) (x)");
        assert_eq!(compared(&["ext", "ext"], "<="), "(a, b) OPERATOR(\"ext\".<=) (x, y)");
        assert_eq!(
            compared(&["pg_catalog", "ext", "pg_catalog"], ">"),
            "(a >= x AND (a > x OR (a = x AND (b OPERATOR(\"ext\".>) y OR (b OPERATOR(\"ext\".=) y AND c > z)))))"
        );
        assert_eq!(
            compared(&["ext", "pg_catalog"], "<="),
            "(a OPERATOR(\"ext\".<=) x AND (a OPERATOR(\"ext\".<) x OR (a OPERATOR(\"ext\".=) x AND b <= y)))"
        );
    }
}
