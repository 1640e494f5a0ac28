//! The integration tests, one binary: a file per capability, on real Postgres servers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod admin;
mod adoption;
mod browser;
mod check;
mod cli;
mod clients;
mod cookbook;
mod crash;
mod demo;
mod dispositions;
mod documented;
mod healing;
mod init;
mod input;
mod map;
mod mapping;
mod monitoring;
mod openapi;
mod page;
mod pgbouncer;
mod plan;
mod privileges;
mod readme;
mod relay;
mod retention;
mod run;
mod schemathesis;
mod server;
mod soak;
mod statements;
mod support;
mod traps;
