//! `/metrics`: the numbers of the database, and how this worker fares.
//!
//! The numbers are asked for once, however many scrapes come at the same time. A database that does not answer costs a
//! scrape `PATIENCE`; the families then stand without values, for old ones would look true.

use crate::connection::Database;
use crate::connection::failure::Failure;
use crate::http::families::{families, headers};
use crate::sql::{self, Sample};
use crate::worker::Worker;
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::timeout;

/// An answer of the database is good for this long.
const FRESH: Duration = Duration::from_secs(1);
/// A scrape waits this long for it.
const PATIENCE: Duration = Duration::from_millis(1700);

/// What the database has answered last.
#[derive(Default)]
struct Latest {
    /// Somebody asks now.
    asking: bool,
    at: Option<Instant>,
    samples: Option<Arc<Vec<Sample>>>,
    /// The families that it has ever named.
    named: Arc<Vec<MetricFamily>>,
}

impl Latest {
    fn is_fresh(&self, since: Option<Instant>) -> bool {
        self.at.is_some() && self.at >= since
    }
}

/// The metrics of a worker.
pub struct Metrics {
    worker: Arc<Worker>,
    database: Arc<Database>,
    latest: Arc<watch::Sender<Latest>>,
    registry: Registry,
    own: Own,
}

/// How this worker fares.
struct Own {
    database_up: IntGauge,
    beat_at: Gauge,
    connections: IntGaugeVec,
    waiting: IntGauge,
    max: IntGauge,
}

impl Own {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let whole = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        whole("pgsteward_worker_up", "1: this worker runs")?.set(1);
        let version = Opts::new("pgsteward_build_info", "The version of this worker")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let build = IntGauge::with_opts(version)?;
        build.set(1);
        registry.register(Box::new(build))?;
        let beat_at = Gauge::new(
            "pgsteward_worker_heartbeat_timestamp_seconds",
            "Unix time at which the database was last told that this worker lives; 0 before the first",
        )?;
        registry.register(Box::new(beat_at.clone()))?;
        let connections =
            Opts::new("pgsteward_pool_connections", "Connections for work of this worker: in_use or idle");
        let connections = IntGaugeVec::new(connections, &["state"])?;
        registry.register(Box::new(connections.clone()))?;
        Ok(Self {
            database_up: whole("pgsteward_database_up", "Whether the database answered this scrape")?,
            beat_at,
            connections,
            waiting: whole("pgsteward_pool_waiting", "Tasks of this worker that wait for a connection")?,
            max: whole("pgsteward_pool_max", "Connections for work that this worker may open")?,
        })
    }
}

impl Metrics {
    /// Registers all families of the worker; those of the database follow with its first answer.
    pub fn new(worker: Arc<Worker>, database: Database) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let own = Own::register(&registry)?;
        Ok(Self { worker, database: Arc::new(database), latest: Arc::default(), registry, own })
    }

    /// The answer to a scrape.
    pub async fn text(&self) -> String {
        let samples = self.samples().await;
        let pool = self.worker.database.pool();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let beat_at = self.worker.pulse.borrow().beat_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        self.own.database_up.set(i64::from(samples.is_some()));
        self.own.beat_at.set(beat_at.map_or(0.0, |at| at.as_secs_f64()));
        self.own.connections.with_label_values(&["in_use"]).set(count(pool.in_use));
        self.own.connections.with_label_values(&["idle"]).set(count(pool.idle));
        self.own.waiting.set(count(pool.waiting));
        self.own.max.set(count(pool.max));
        let mut shown = self.registry.gather();
        let mut without_values = String::new();
        match samples {
            Some(samples) => shown.extend(families(&samples)),
            None => without_values = headers(&self.latest.borrow().named),
        }
        match TextEncoder::new().encode_to_string(&shown) {
            Ok(text) => text + &without_values,
            Err(error) => format!("# {error}\n"),
        }
    }

    /// What the database says, or said a moment ago; None if it does not answer in time.
    pub async fn samples(&self) -> Option<Arc<Vec<Sample>>> {
        let since = Instant::now().checked_sub(FRESH);
        let begin = self.latest.send_if_modified(|latest| {
            let begin = !latest.asking && !latest.is_fresh(since);
            latest.asking |= begin;
            begin
        });
        if begin {
            let (worker, database) = (Arc::clone(&self.worker), Arc::clone(&self.database));
            // Goes on when the scrape has given up: a connection that waits for an answer must not be used again.
            tokio::spawn(ask(worker, database, Arc::clone(&self.latest)));
        }
        let mut latest = self.latest.subscribe();
        match timeout(PATIENCE, latest.wait_for(|latest| latest.is_fresh(since))).await {
            Ok(Ok(latest)) => latest.samples.clone(),
            _ => None,
        }
    }
}

async fn ask(worker: Arc<Worker>, database: Arc<Database>, latest: Arc<watch::Sender<Latest>>) {
    let samples = match trust_metrics(&database).await {
        Ok(samples) => {
            worker.answered();
            Some(Arc::new(samples))
        }
        Err(failure) => {
            worker.failed("metrics", &failure);
            None
        }
    };
    latest.send_modify(|latest| {
        if let Some(samples) = &samples {
            latest.named = Arc::new(families(samples));
        }
        (latest.asking, latest.at, latest.samples) = (false, Some(Instant::now()), samples);
    });
}

async fn trust_metrics(database: &Database) -> Result<Vec<Sample>, Failure> {
    let mut session = database.session().await?;
    sql::trust_metrics(&mut session).await
}
