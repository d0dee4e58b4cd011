//! LISTEN on a connection of its own. Notifications only spare the wait for the next look; polling stays the truth.

use crate::backoff::Backoff;
use crate::connection::failure::Failure;
use crate::connection::{Database, Driver};
use crate::queue::Queue;
use crate::worker::Worker;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::AsyncMessage;

/// Listens until the worker stops, and connects again whenever the connection breaks.
pub async fn run(worker: Arc<Worker>, direct: Option<Database>) {
    if !worker.listens {
        tracing::info!("no LISTEN_URL, and notifications do not pass through a pooler: polling only");
        return;
    }
    let mut backoff = Backoff::default();
    let mut told = false;
    loop {
        let database = direct.as_ref().unwrap_or(&worker.database);
        let failure = match listen(&worker, database, &mut backoff, &mut told).await {
            Ok(()) => Failure::closed(),
            Err(failure) => failure,
        };
        if worker.stop.drain.is_cancelled() {
            return;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(error = failure.to_string(), "no notifications meanwhile, polling instead");
        }
        if !worker.pause(backoff.next()).await {
            return;
        }
    }
}

async fn listen(worker: &Worker, database: &Database, backoff: &mut Backoff, told: &mut bool) -> Result<(), Failure> {
    let (client, driver) = database.connect().await?;
    let mut driver = std::pin::pin!(drive(worker, driver));
    tokio::select! {
        ended = &mut driver => return ended,
        listening = client.batch_execute(crate::sql::LISTEN) => listening?,
    }
    backoff.reset();
    *told = false;
    tracing::debug!("listening for notifications");
    // What was sent while nobody listened is found by looking.
    for queue in Queue::ALL {
        Worker::notify(worker.wakes(queue));
    }
    Worker::notify(&worker.trust);
    loop {
        tokio::select! {
            ended = &mut driver => return ended,
            () = worker.stop.drain.cancelled() => return Ok(()),
            // A connection whose other end is gone without a word is found out by using it.
            () = tokio::time::sleep(Duration::from_secs(30)) => {
                tokio::select! {
                    ended = &mut driver => return ended,
                    alive = client.check_connection() => alive?,
                    () = tokio::time::sleep(Duration::from_secs(30)) => return Err(Failure::timeout(Duration::from_secs(30))),
                }
            }
        }
    }
}

/// Moves the connection along and passes notifications on.
async fn drive(worker: &Worker, mut driver: Driver) -> Result<(), Failure> {
    while let Some(message) = poll_fn(|context| driver.poll_message(context)).await {
        if let AsyncMessage::Notification(notification) = message? {
            let payload = notification.payload();
            match Queue::ALL.into_iter().find(|queue| queue.name() == payload) {
                Some(queue) => Worker::notify(worker.wakes(queue)),
                None if payload == "trust" => Worker::notify(&worker.trust),
                None => tracing::debug!(payload, "unknown notification"),
            }
        }
    }
    Ok(())
}
