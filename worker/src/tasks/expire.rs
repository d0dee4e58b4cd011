//! Deletes ended items that are older than their topic keeps them, a batch at a time.

use crate::connection::failure::Failure;
use crate::queue::Queue;
use crate::sql;
use crate::worker::Worker;
use std::sync::Arc;

/// Items deleted in one transaction.
const BATCH: i32 = 10_000;

/// Looks now and then until the worker stops. Any number of workers may do so: they pass each other's items over.
pub async fn run(worker: Arc<Worker>) {
    while worker.pause(worker.config.expire_interval).await {
        for queue in Queue::ALL {
            if let Err(failure) = expire(&worker, queue).await {
                worker.failed("expire", &failure);
            }
        }
    }
}

async fn expire(worker: &Worker, queue: Queue) -> Result<(), Failure> {
    let mut total = 0;
    while !worker.stop.drain.is_cancelled() {
        let mut session = worker.database.session().await?;
        let deleted = sql::expire(&mut session, queue, BATCH).await?;
        total += deleted;
        if deleted < i64::from(BATCH) {
            break;
        }
    }
    if total > 0 {
        tracing::info!(
            queue = queue.name(),
            deleted = total,
            "ended items deleted that were older than their topic keeps them"
        );
    }
    Ok(())
}
