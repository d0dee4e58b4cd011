//! The command line.

use crate::settings::Flags;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// The worker of pgsteward and its operator's tools.
#[derive(Debug, Parser)]
#[command(
    name = "pgsteward",
    version,
    max_term_width = 120,
    after_help = "Settings come from flags, then the environment, then the file, then defaults.\n\
                  Exit codes: 0 all right, 1 something failed or was found wrong, 2 wrong usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Action,
    /// Configuration file (TOML, a key per setting) [env: PGSTEWARD_CONFIG]
    #[arg(long, value_name = "FILE", global = true, help_heading = "General")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub general: Flags<false>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Work: process events and recompute trust, until SIGTERM
    #[command(
        after_help = "SIGTERM or SIGINT: begin nothing new, finish what has begun, give the rest back. A second signal: give back at once.\n\
                            Exit codes: 0 stopped as told, 1 could not start or broke, 2 wrong usage or configuration."
    )]
    Run {
        /// Stop when no event is queued or leased by anyone and no scene is to be recomputed; then print a summary
        #[arg(long)]
        until_empty: bool,
        #[command(flatten)]
        worker: Flags<true>,
    },
    /// Install or update the extension, and apply its schema
    Migrate {
        /// Schema to create the extension in; made if missing
        #[arg(long, value_name = "NAME")]
        schema: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Which files of the schema are applied; exits with 1 if one is not
    Status(Output),
    /// Compare the database with what the schema should be; exits with 1 if there is an error
    Validate(Output),
    /// What the schema is made of
    Report(Output),
    /// How the schema is used
    Stats(Output),
    /// Every health check, worst first; exits with 1 if there is an error
    Health(Output),
    /// The effective configuration, and where each value comes from
    Config {
        #[command(flatten)]
        worker: Flags<true>,
        #[command(flatten)]
        output: Output,
    },
}

/// How to print.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn general_flags_stand_before_or_after_the_command() {
        for line in [["pgsteward", "--log-level", "debug", "health"], ["pgsteward", "health", "--log-level", "debug"]] {
            assert_eq!(Cli::parse_from(line).general.0["log_level"], "debug");
        }
    }

    #[test]
    fn worker_flags_belong_to_the_worker() {
        let cli = Cli::parse_from(["pgsteward", "run", "--queue-concurrency", "-3"]);
        let Action::Run { worker, .. } = cli.command else { panic!() };
        assert_eq!(worker.0["queue_concurrency"], "-3");
        assert!(Cli::try_parse_from(["pgsteward", "health", "--queue-concurrency", "3"]).is_err());
    }
}
