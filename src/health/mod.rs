//! Whether it flows: one judgement, from which the page, `/readyz`, the metric `degraded` and alerts are fed.
//!
//! What is known ([`Facts`]) is gathered by [`gather`]; what is the matter ([`Condition`]) is judged by one pure function; what is
//! said of it to people ([`Finding`]) by another. Nobody else decides whether something stands in the way.

mod condition;
mod facts;
mod finding;
mod gather;
mod matter;
mod watch;

pub(crate) use self::condition::{Condition, conditions};
pub(crate) use self::facts::{Facts, Phase};
pub(crate) use self::finding::{Finding, findings, say};
pub(crate) use self::gather::{Asked, Gatherer};
pub(crate) use self::matter::{CAUSES, Matter, Tone};
pub(crate) use self::watch::{Latest, Watch};
