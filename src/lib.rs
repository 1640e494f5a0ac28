//! The crate's map.

pub mod admin;
pub mod connect;
pub mod config;
pub mod demo;
pub mod disposition;
pub mod event;
pub mod init;
pub mod mapping;
pub mod metrics;
pub mod operator;
pub mod relay;
pub mod retry;
pub mod session;
pub mod source;
pub mod sql;
pub mod target;
