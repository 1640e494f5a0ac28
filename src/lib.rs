//! The crate's map.
pub mod config;
pub mod disposition;
pub mod event;
pub mod mapping;
pub mod metrics;
pub mod relay;
pub mod retry;
pub mod session;
pub mod source;
pub mod sql;
pub mod target;
