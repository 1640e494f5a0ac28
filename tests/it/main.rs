//! The integration tests, one binary: a file per capability, on real Postgres servers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod demo;
mod relay;
mod server;
mod support;
