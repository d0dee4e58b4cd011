//! The sign of life, every few seconds and whenever waiting begins or ends.

use crate::connection::failure::Failure;
use crate::sql;
use crate::worker::Worker;
use std::sync::Arc;
use std::time::SystemTime;

/// Beats until the worker stops, and goes on while it drains.
pub async fn run(worker: Arc<Worker>) {
    loop {
        beat(&worker).await;
        tokio::select! {
            () = tokio::time::sleep(worker.config.heartbeat_interval) => (),
            () = worker.stop.drain.cancelled(), if !worker.pulse.borrow().draining => {
                worker.pulse.send_modify(|pulse| pulse.draining = true);
            }
        }
    }
}

/// Tells the database how the worker fares now. True once it knows.
pub async fn beat(worker: &Worker) -> bool {
    let _one_at_a_time = worker.beating.lock().await;
    match send(worker).await {
        Ok(()) => {
            worker.answered();
            worker.pulse.send_modify(|pulse| pulse.beat_at = Some(SystemTime::now()));
            true
        }
        Err(failure) => {
            worker.failed("heartbeat", &failure);
            false
        }
    }
}

async fn send(worker: &Worker) -> Result<(), Failure> {
    let mut session = worker.beats.session().await?;
    let pulse = worker.pulse.borrow().clone();
    let state = match (pulse.stopped, pulse.draining) {
        (true, _) => "stopped",
        (false, true) => "draining",
        (false, false) => "running",
    };
    let beat = sql::Beat {
        worker: &worker.identity.name,
        host: &worker.identity.host,
        pid: worker.identity.pid,
        version: env!("CARGO_PKG_VERSION"),
        started_at: worker.identity.started_at,
        state,
        waiting: state == "running" && pulse.idle > 0 && worker.listens,
        leased: pulse.leased(),
        events_done: pulse.done(),
        last_error: pulse.last_error.as_deref(),
        pool: worker.database.pool(),
        trust_timeout: worker.config.trust_timeout,
        trust_callers: worker.config.trust_concurrency,
        trust_stop: pulse.trust_stop,
    };
    sql::worker_beat(&mut session, &beat).await
}
