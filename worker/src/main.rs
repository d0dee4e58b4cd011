//! pgsteward: the worker beside the extension, and the command line of its operators.

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

mod backoff;
mod batch_size;
mod cli;
mod config;
mod connection;
mod http;
mod log;
mod pace;
mod problem;
mod progress;
mod queue;
mod ready;
mod run;
mod schema;
mod settings;
mod sql;
mod table;
mod tasks;
mod worker;

use clap::Parser;
use cli::{Action, Cli, Output};
use config::Config;
use problem::Problem;
use schema::Asked;
use sql::Question;
use std::process::ExitCode;

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("pgsteward: {problem}");
            problem.exit_code()
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Problem> {
    let environment = |name: &str| std::env::var(name).ok();
    let mut flags = cli.general.0;
    if let Action::Run { worker, .. } | Action::Config { worker, .. } = &cli.command {
        flags.extend(worker.0.clone());
    }
    let config = Config::load(flags, &environment, cli.config.as_deref())?;
    let bars = indicatif::MultiProgress::new();
    log::start(config.log_format, &config.log_level, bars.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Problem::failure(format!("cannot start: {error}")))?;
    let asked = |output: Output| Asked { config: &config, environment: &environment, json: output.json };
    let ended = runtime.block_on(async {
        match &cli.command {
            Action::Run { until_empty, .. } => run::run(config.clone(), &environment, *until_empty, bars).await,
            Action::Migrate { schema, output } => schema::migrate(&asked(*output), schema.as_deref()).await,
            Action::Status(output) => schema::status(&asked(*output)).await,
            Action::Validate(output) => schema::validate(&asked(*output)).await,
            Action::Report(output) => schema::show(&asked(*output), Question::Report).await,
            Action::Stats(output) => schema::show(&asked(*output), Question::Stats).await,
            Action::Health(output) => schema::health(&asked(*output)).await,
            Action::Config { output, .. } => config.print(&environment, output.json),
        }
    });
    // Tasks that hang on a server without an answer must not keep the process.
    runtime.shutdown_background();
    match ended {
        Err(problem) if matches!(cli.command, Action::Run { .. }) && log::is_json(config.log_format) => {
            tracing::error!(detail = problem.detail, hint = problem.hint, "{}", problem.message);
            Ok(problem.exit_code())
        }
        ended => ended.map(|()| ExitCode::SUCCESS),
    }
}
