//! Deletes what is older than it is kept: ended items, recorded recomputes and scores of the past; a batch at a time.

use crate::connection::Session;
use crate::connection::failure::Failure;
use crate::queue::Queue;
use crate::sql;
use crate::worker::Worker;
use std::sync::Arc;

/// Rows deleted in one transaction.
const BATCH: i32 = 10_000;

/// What may be too old.
#[derive(Clone, Copy)]
enum Kind {
    Items(Queue),
    TrustRuns,
    TrustHistory,
    TrustPropagationRuns,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Items(Queue::Events),
        Self::Items(Queue::Discovery),
        Self::TrustRuns,
        Self::TrustHistory,
        Self::TrustPropagationRuns,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Items(queue) => queue.name(),
            Self::TrustRuns => "trust runs",
            Self::TrustHistory => "trust history",
            Self::TrustPropagationRuns => "trust propagation runs",
        }
    }

    async fn delete(self, session: &mut Session) -> Result<i64, Failure> {
        match self {
            Self::Items(queue) => sql::expire(session, queue, BATCH).await,
            Self::TrustRuns => sql::expire_trust_runs(session, BATCH).await,
            Self::TrustHistory => sql::expire_trust_history(session, BATCH).await,
            Self::TrustPropagationRuns => sql::expire_trust_propagation_runs(session, BATCH).await,
        }
    }
}

/// Looks now and then until the worker stops. Any number of workers may do so: they pass each other's rows over.
pub async fn run(worker: Arc<Worker>) {
    while worker.pause(worker.config.expire_interval).await {
        for kind in Kind::ALL {
            if let Err(failure) = expire(&worker, kind).await {
                worker.failed("expire", &failure);
            }
        }
    }
}

async fn expire(worker: &Worker, kind: Kind) -> Result<(), Failure> {
    let mut total = 0;
    while !worker.stop.drain.is_cancelled() {
        let mut session = worker.database.session().await?;
        let deleted = kind.delete(&mut session).await?;
        total += deleted;
        if deleted < i64::from(BATCH) {
            break;
        }
    }
    if total > 0 {
        tracing::info!(of = kind.name(), deleted = total, "deleted what was older than it is kept");
    }
    Ok(())
}
