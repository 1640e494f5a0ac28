//! What is wrong with a configuration, said so that it can be mended without reading the source.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong, in the order in which an operator would go through the file; never empty, never a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub(super) Vec<Problem>);

impl ConfigErrors {
    /// Each problem on its own.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable; listed in the operations guide.
    pub code: Code,
    /// Where it was written.
    pub place: Place,
    /// Names the key, what was found and what is expected.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code.as_str(), self.what)?;
        if self.place != Place::Nowhere {
            write!(f, "\n  --> {}", self.place)?;
        }
        write!(f, "\n  then: {}", self.remedy)
    }
}

/// The kinds of mistakes in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A file, of the configuration or named by it, cannot be read.
    File,
    /// The file is not TOML.
    Syntax,
    /// A key or variable that nobody knows.
    Unknown,
    /// A key that must be there is not.
    Missing,
    /// A value that is not what its key takes.
    Value,
    /// Values that are right each, and wrong together.
    Conflict,
}

impl Code {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::File => "config.file",
            Code::Syntax => "config.syntax",
            Code::Unknown => "config.unknown",
            Code::Missing => "config.missing",
            Code::Value => "config.value",
            Code::Conflict => "config.conflict",
        }
    }
}

/// Where something was configured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the configuration file; line and column from 1, the column in characters.
    File {
        /// As the operator named it.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// In the environment.
    Variable(String),
    /// On the command line.
    Flag(String),
    /// Nowhere: it is missing.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Flag(name) => write!(f, "{name} on the command line"),
            Place::Nowhere => f.write_str("nowhere"),
        }
    }
}

/// The candidate that a misspelled word was most likely meant to be.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `a`, `b` or `c`, for messages.
pub(super) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("\"{word}\"")).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_word_and_a_different_word_finds_none() {
        let words = ["url", "outbox", "schema", "prepared_statements"];
        assert_eq!(nearest("ulr", words), Some("url"));
        assert_eq!(nearest("Outbox", words), Some("outbox"));
        assert_eq!(nearest("prepare_statement", words), Some("prepared_statements"));
        assert_eq!(nearest("password", words), None);
    }

    #[test]
    fn words_are_listed_as_people_list_them() {
        assert_eq!(one_of(["a"]), r#""a""#);
        assert_eq!(one_of(["a", "b", "c"]), r#""a", "b" or "c""#);
    }
}
