//! The tasks of a running worker.

mod batch;
pub mod expire;
pub mod heartbeat;
pub mod listener;
pub mod queue;
pub mod trust;
