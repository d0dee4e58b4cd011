//! What the worker serves over HTTP, and on which address.

mod families;
mod metrics;

use crate::config::{Config, Source};
use crate::connection::Database;
use crate::problem::Problem;
use crate::settings::METRICS_LISTEN;
use crate::worker::Worker;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// What is asked for a page may take this long in the database.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_millis(1400);

const INDEX: &str = concat!(
    "pgsteward ",
    env!("CARGO_PKG_VERSION"),
    "\n\n/metrics  metrics of trust and of this worker, for Prometheus\n"
);

/// Opens the port that the settings name. An address nobody asked for may be taken: other workers run here as well.
pub async fn open(config: &Config) -> Result<Option<TcpListener>, Problem> {
    let Some(address) = &config.metrics_listen else {
        return Ok(None);
    };
    match TcpListener::bind(address).await {
        Ok(door) => {
            let address = door.local_addr().map(|address| address.to_string()).unwrap_or_default();
            tracing::info!(address, "serving metrics");
            Ok(Some(door))
        }
        Err(error) if *config.source(&METRICS_LISTEN) == Source::Default => {
            tracing::warn!(address, error = error.to_string(), "no metrics: give another metrics_listen, or off");
            Ok(None)
        }
        Err(error) => {
            let setting = config.describe(&METRICS_LISTEN);
            Err(Problem::configuration(format!("cannot listen on {address} from {setting}: {error}"))
                .hint("Give an address and a free port, such as 127.0.0.1:9480, or off."))
        }
    }
}

/// Serves until the worker has stopped.
pub async fn serve(door: TcpListener, worker: Arc<Worker>, database: Database) {
    let metrics = match Metrics::new(worker, database) {
        Ok(metrics) => Arc::new(metrics),
        Err(error) => {
            tracing::error!(error = error.to_string(), "no metrics");
            return;
        }
    };
    // From the first answer on all families are named, whatever becomes of the database.
    metrics.samples().await;
    let text = async move || ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics.text().await);
    let routes = Router::new().route("/", get(async || INDEX)).route("/metrics", get(text));
    if let Err(error) = axum::serve(door, routes).await {
        tracing::error!(error = error.to_string(), "no metrics any more");
    }
}
