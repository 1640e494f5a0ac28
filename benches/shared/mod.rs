//! What all benchmarks stand on.

pub(crate) mod figures;
pub(crate) mod machine;
pub(crate) mod servers;
