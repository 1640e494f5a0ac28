//! Relays outbox events from one Postgres to another: each once, in order, and nothing lost.

pub mod demo;
