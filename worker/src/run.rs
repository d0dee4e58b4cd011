//! `pgsteward run`: start, watch over the tasks, and drain.

use crate::config::{Config, Environment};
use crate::connection::address::Address;
use crate::connection::{Database, Usage};
use crate::problem::Problem;
use crate::queue::Queue;
use crate::settings::{DATABASE_URL, LISTEN_URL};
use crate::tasks::{expire, heartbeat, listener, queue, trust};
use crate::worker::{Identity, Stop, Worker};
use crate::{http, progress, ready};
use indicatif::MultiProgress;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

/// After work had to be given back, the tasks get this long to do so; and the last heartbeat as long again.
const LAST_STEPS: Duration = Duration::from_secs(2);

/// Works until a signal comes, or until nothing is left.
pub async fn run(
    config: Config,
    environment: Environment<'_>,
    until_empty: bool,
    bars: MultiProgress,
) -> Result<(), Problem> {
    let stop = Stop::default();
    listen_to_signals(stop.clone(), config.drain_timeout)?;
    let identity = Identity::new();
    let application = format!("pgsteward/{} {}", env!("CARGO_PKG_VERSION"), identity.name);
    let open = |text: Option<&str>, setting, usage| {
        let address = Address::resolve(text, &config.describe(setting), environment)?;
        Database::new(address, &application, usage)
    };
    let usage =
        Usage { sessions: config.pool_size, statement_timeout: Some(config.statement_timeout), pooled: config.pooled };
    let database = open(config.database_url.as_deref(), &DATABASE_URL, usage)?;
    let direct = match &config.listen_url {
        Some(text) => Some(open(Some(text), &LISTEN_URL, Usage { sessions: 1, pooled: false, ..usage })?),
        None => None,
    };
    let beats = open(config.database_url.as_deref(), &DATABASE_URL, Usage { sessions: 1, ..usage })?;
    let asking = Usage { sessions: 1, statement_timeout: Some(http::STATEMENT_TIMEOUT), ..usage };
    let asked = open(config.database_url.as_deref(), &DATABASE_URL, asking)?;
    let door = http::open(&config).await?;
    let installation = tokio::select! {
        installation = ready::start(&database, config.connect_timeout) => installation?,
        () = stop.drain.cancelled() => return Ok(()),
    };
    tracing::info!(
        worker = identity.name,
        version = env!("CARGO_PKG_VERSION"),
        extension = installation.version,
        schema = installation.schema,
        database = database.address.database(),
        place = database.address.place(),
        user = installation.user,
        pooled = config.pooled,
        pool_size = config.pool_size,
        trust_recompute_timeout = format!("{}s", config.trust_timeout.as_secs_f64()),
        "worker started"
    );
    let worker = Arc::new(Worker::new(config, database, beats, identity, stop));
    let ended = supervise(&worker, direct, door.map(|door| (door, asked)), until_empty, bars).await;
    worker.pulse.send_modify(|pulse| (pulse.draining, pulse.stopped) = (true, true));
    if !timeout(LAST_STEPS, heartbeat::beat(&worker)).await.unwrap_or_default() {
        tracing::warn!("the database could not be told that this worker stops");
    }
    let pulse = worker.pulse.borrow().clone();
    tracing::info!(
        worker = worker.identity.name,
        events_done = pulse.events.done,
        events_retried = pulse.events.retried,
        events_failed = pulse.events.failed,
        discovery_done = pulse.discovery.done,
        discovery_retried = pulse.discovery.retried,
        discovery_failed = pulse.discovery.failed,
        leases_lost = pulse.events.lost + pulse.discovery.lost,
        scenes_processed = pulse.scenes,
        "worker stopped"
    );
    ended
}

/// Runs the tasks until all that work have ended.
async fn supervise(
    worker: &Arc<Worker>,
    direct: Option<Database>,
    served: Option<(TcpListener, Database)>,
    until_empty: bool,
    bars: MultiProgress,
) -> Result<(), Problem> {
    let mut working = JoinSet::new();
    for queue in Queue::ALL {
        for _ in 0..worker.config.queue(queue).concurrency {
            working.spawn(queue::run(Arc::clone(worker), queue));
        }
    }
    for place in 0..worker.config.trust_concurrency {
        working.spawn(trust::run(Arc::clone(worker), place));
    }
    if until_empty {
        working.spawn(progress::until_empty(Arc::clone(worker), bars));
    }
    let mut beside = JoinSet::new();
    beside.spawn(heartbeat::run(Arc::clone(worker)));
    beside.spawn(listener::run(Arc::clone(worker), direct));
    beside.spawn(expire::run(Arc::clone(worker)));
    if let Some((door, asked)) = served {
        beside.spawn(http::serve(door, Arc::clone(worker), asked));
    }
    let stop = &worker.stop;
    let mut out_of_time = std::pin::pin!(async {
        stop.now.cancelled().await;
        sleep(LAST_STEPS).await;
    });
    let mut problem = Ok(());
    loop {
        tokio::select! {
            ended = working.join_next() => match ended {
                Some(ended) => problem = problem.and(healthy(ended)),
                None => return problem,
            },
            Some(ended) = beside.join_next() => problem = problem.and(healthy(ended)),
            () = &mut out_of_time => {
                tracing::warn!("the server does not answer; leases that are still held expire by themselves");
                return problem;
            }
        }
        if problem.is_err() {
            stop.drain("a broken task");
        }
    }
}

fn healthy(ended: Result<(), JoinError>) -> Result<(), Problem> {
    ended.map_err(|error| Problem::failure(format!("a task of the worker broke: {error}")))
}

/// The first signal drains, for a limited time; the second one stops at once.
fn listen_to_signals(stop: Stop, drain_timeout: Duration) -> Result<(), Problem> {
    let open = |kind| signal(kind).map_err(|error| Problem::failure(format!("cannot receive signals: {error}")));
    let (mut terminate, mut interrupt) = (open(SignalKind::terminate())?, open(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        tokio::select! {
            name = next() => {
                tracing::info!(signal = name, drain_timeout = drain_timeout.as_secs_f64(), "stopping: finishing what has begun");
                stop.drain("stop signal");
            }
            () = stop.drain.cancelled() => (),
        }
        tokio::select! {
            name = next() => tracing::info!(signal = name, "stopping at once: giving back what is not finished"),
            () = sleep(drain_timeout) => tracing::warn!("drain timeout: giving back what is not finished"),
        }
        stop.now.cancel();
    });
    Ok(())
}
