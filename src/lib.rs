//! Relays outbox events from one Postgres to another: each once, in order, and nothing lost.
//!
//! A map. What an operator asks for:
//!
//! - [`init`]: makes the outbox and the relay's own tables
//! - [`check`]: reads everything, changes nothing, and says what is wrong
//! - [`map`]: shows what one event would write
//! - [`plan`]: shows what the split does to foreign keys
//! - [`capture`]: triggers that write a legacy table's events
//! - [`backfill`]: the first copy of whole tables
//! - [`verify`]: compares both databases, through the mapping, while events flow
//! - [`relay`]: claims, applies and settles, batch by batch, and heals
//! - [`repair`]: makes rows of the new database right again, from the legacy ones
//! - [`migration`]: how far all of that has come, and what operators start and stop of it
//! - [`retention`]: deletes what is old enough
//! - [`operator`]: what operators see and do, over HTTP by [`admin`], in a browser by `page`
//! - [`alerts`]: messages to a webhook when something is wrong, and when it is over
//! - [`run`]: the relay and the admin API in one process
//! - [`demo`]: all of it on one machine
//!
//! They are asked for through [`cli`]. The ground they stand on:
//!
//! - [`config`]: what the operator wrote, checked
//! - [`event`]: the words of the protocol
//! - [`source`], [`target`]: everything that is said to each database, in transactions of [`session`], over [`connect`], and why [`tls`] to them was refused
//! - [`job`]: long pieces of work, as everybody sees them
//! - [`lease`], [`heal`]: a lane locked on both sides, and how two logs that differ are made to agree
//! - [`mapping`]: from the old shape to the new
//! - [`disposition`], [`retry`]: whose an error is, and how long to wait
//! - [`redact`]: what of a row may be shown to whom
//! - `health`: whether it flows; the one judgement that the page, readiness and metrics tell
//! - [`sql`]: statements and the names in them
//! - [`metrics`], [`telemetry`]: what is told to those who watch
//! - `words`: numbers as people read them; `failpoint`: where a test may end the process

pub mod admin;
pub mod alerts;
pub mod backfill;
pub mod capture;
pub mod check;
pub mod cli;
pub mod config;
pub mod connect;
pub mod demo;
pub mod disposition;
pub mod event;
mod failpoint;
pub mod heal;
mod health;
pub mod init;
pub mod job;
pub mod lease;
pub mod map;
pub mod mapping;
pub mod metrics;
pub mod migration;
pub mod operator;
mod page;
pub mod plan;
pub mod redact;
pub mod relay;
pub mod repair;
pub mod retention;
pub mod retry;
pub mod run;
pub mod session;
pub mod source;
pub mod sql;
pub mod target;
pub mod telemetry;
pub mod tls;
pub mod verify;
mod words;
