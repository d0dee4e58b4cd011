//! The rules of the extension, compiled without PostgreSQL so that their tests need no server.

#[path = "../../../extension/src/discovery/rules.rs"]
pub mod discovery;
#[path = "../../../extension/src/propagation/rules.rs"]
pub mod propagation;
#[path = "../../../extension/src/queue/rules.rs"]
pub mod queue;
#[path = "../../../extension/src/search/rules.rs"]
pub mod search;
#[path = "../../../extension/src/trust/rules.rs"]
pub mod trust;
