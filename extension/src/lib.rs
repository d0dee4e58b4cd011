//! pgsteward: the back office of a community marketplace inside PostgreSQL.
//!
//! One folder per domain: `mod.rs` is what SQL sees, `rules.rs` holds the pure formulas, `*.sql` the statements.
//! The tables, SQL functions and views live in the workspace's `sql/` and `views/` and travel inside this library.

mod deadline;
mod discovery;
mod error;
mod heap;
mod preconditions;
mod propagation;
mod queue;
mod schema;
mod search;
mod settings;
mod statement;
mod subtransaction;
mod trust;

#[cfg(panic = "abort")]
compile_error!("pgsteward must be built with panic = \"unwind\": an SQL error would crash the server otherwise");

pgrx::pg_module_magic!();

/// Called by PostgreSQL when the library is loaded.
#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // With RUST_BACKTRACE in the server's environment, pgrx would add a backtrace to every error that a client sees.
    // SAFETY: a backend has one thread.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    settings::register();
}
