//! `outbox-relay demo`: the whole of it on one machine, and nothing left behind.

pub mod server;
