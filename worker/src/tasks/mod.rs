//! The tasks of a running worker.

pub mod heartbeat;
pub mod listener;
pub mod queue;
pub mod trust;
