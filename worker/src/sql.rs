//! All SQL of the worker: one function here per SQL function that it calls.

use crate::connection::failure::Failure;
use crate::connection::{Parameter, PoolState, Session};
use crate::queue::Queue;
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime};
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

const LONGEST_LEASE: i32 = 86_400;

fn cell<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Failure> {
    row.try_get(column).map_err(Failure::from)
}

/// The schema of the extension, quoted; None if it is not installed.
const SCHEMA: &str = "(SELECT pg_catalog.quote_ident(n.nspname) \
                         FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
                        WHERE e.extname = 'pgsteward')";

/// Finds the schema of the extension, and leaves the session as it is.
pub async fn schema(client: &Client) -> Result<Option<String>, Error> {
    let rows = client.query_typed(&format!("SELECT {SCHEMA}"), &[]).await?;
    rows.first().map_or(Ok(None), |row| row.try_get(0))
}

/// Sets up a new session: where names are found, isolation and timeouts. Returns the schema of the extension.
pub async fn prepare(client: &Client, statement_timeout: Option<Duration>) -> Result<Option<String>, Error> {
    let timeout = statement_timeout.unwrap_or_default().as_millis().to_string();
    let text = format!(
        "SELECT found.schema, set_config('search_path', 'pg_catalog, ' || found.schema || ', pg_temp', false), \
                set_config('statement_timeout', $1, false), set_config('idle_in_transaction_session_timeout', '60s', false), \
                set_config('default_transaction_isolation', 'read committed', false) \
           FROM (SELECT {SCHEMA} AS schema) AS found"
    );
    let rows = client.query_typed(&text, &[(&timeout, Type::TEXT)]).await?;
    rows.first().map_or(Ok(None), |row| row.try_get(0))
}

/// What is installed in this database and what the server could install.
pub struct Installation {
    pub schema: Option<String>,
    pub version: Option<String>,
    pub available: Option<String>,
    pub user: String,
    /// Whether the schema has ever been applied.
    pub migrated: bool,
}

/// Looks the extension up.
pub async fn installation(session: &mut Session) -> Result<Installation, Failure> {
    let text = "SELECT n.nspname::text, e.extversion, a.default_version, current_user::text, \
                       EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'schema_migrations') \
                  FROM (SELECT) AS one \
                  LEFT JOIN pg_catalog.pg_extension e ON e.extname = 'pgsteward' \
                  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
                  LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = 'pgsteward'";
    let row = session.query_one(text, &[]).await?;
    Ok(Installation {
        schema: cell(&row, 0)?,
        version: cell(&row, 1)?,
        available: cell(&row, 2)?,
        user: cell(&row, 3)?,
        migrated: cell(&row, 4)?,
    })
}

/// Whether this role may do the work of a worker.
pub async fn may_work(session: &mut Session) -> Result<bool, Failure> {
    let text = "SELECT coalesce(bool_and(has_function_privilege(p.oid, 'EXECUTE')), false) \
                  FROM pg_proc p JOIN pg_extension e ON e.extnamespace = p.pronamespace AND e.extname = 'pgsteward' \
                 WHERE p.proname IN ('lease_events', 'process_events', 'lease_discovery_items', 'process_discovery_items', \
                                     'worker_beat', 'trust_recompute')";
    cell(&session.query_one(text, &[]).await?, 0)
}

/// `CREATE EXTENSION`, in this schema if one is named; the schema is made if it is missing.
pub async fn create_extension(session: &mut Session, schema: Option<&str>) -> Result<(), Failure> {
    let Some(schema) = schema else {
        return session.query("CREATE EXTENSION IF NOT EXISTS pgsteward CASCADE", &[]).await.map(|_| ());
    };
    let text = "SELECT format('CREATE SCHEMA IF NOT EXISTS %I', $1), \
                       format('CREATE EXTENSION IF NOT EXISTS pgsteward SCHEMA %I CASCADE', $1)";
    let row = session.query_one(text, &[(&schema, Type::TEXT)]).await?;
    for text in ["BEGIN", cell(&row, 0)?, cell(&row, 1)?] {
        if let Err(failure) = session.query(text, &[]).await {
            session.query("ROLLBACK", &[]).await?;
            return Err(failure);
        }
    }
    session.query("COMMIT", &[]).await.map(|_| ())
}

/// `ALTER EXTENSION ... UPDATE` to the version that the server has.
pub async fn update_extension(session: &mut Session) -> Result<(), Failure> {
    session.query("ALTER EXTENSION pgsteward UPDATE", &[]).await.map(|_| ())
}

/// The questions whose answers are printed as they come.
#[derive(Debug, Clone, Copy)]
pub enum Question {
    Migrate,
    Status,
    Validate,
    Report,
    Stats,
    Health,
}

/// The rows of an answer, each as a JSON object whose keys are in the order of the columns.
pub async fn ask(session: &mut Session, question: Question) -> Result<Vec<Map<String, Value>>, Failure> {
    let text = match question {
        Question::Migrate => "SELECT row_to_json(t)::text FROM @extschema@.steward_migrate() AS t",
        Question::Status => "SELECT row_to_json(t)::text FROM @extschema@.steward_schema_status() AS t",
        Question::Validate => "SELECT row_to_json(t)::text FROM @extschema@.steward_schema_validate() AS t",
        Question::Report => "SELECT row_to_json(t)::text FROM @extschema@.steward_schema_report() AS t",
        Question::Stats => "SELECT row_to_json(t)::text FROM @extschema@.steward_schema_stats() AS t",
        Question::Health => "SELECT row_to_json(t)::text FROM @extschema@.steward_health AS t",
    };
    let rows = session.query(text, &[]).await?;
    let rows = rows.iter().map(|row| Ok(serde_json::from_str(cell(row, 0)?).unwrap_or_default()));
    rows.collect()
}

/// What was leased together from a queue.
#[derive(Default)]
pub struct Batch {
    pub items: Vec<Leased>,
    pub token: Uuid,
}

/// A leased item.
pub struct Leased {
    pub id: i64,
    pub topic: String,
    pub attempts: i32,
}

/// How the functions of a queue name what they work on.
fn items(queue: Queue) -> &'static str {
    match queue {
        Queue::Events => "events",
        Queue::Discovery => "discovery_items",
    }
}

/// Leases up to this many items, of events those of any topic.
pub async fn lease(
    session: &mut Session,
    queue: Queue,
    limit: i32,
    ttl: Duration,
    worker: &str,
) -> Result<Batch, Failure> {
    let text = match queue {
        Queue::Events => {
            "SELECT id, attempts, lease_token, topic_name \
               FROM set_config('synchronous_commit', 'off', true), @extschema@.lease_events(NULL, $1, $2, $3)"
        }
        Queue::Discovery => {
            "SELECT id, attempts, lease_token, 'marketplace.discovery' \
               FROM set_config('synchronous_commit', 'off', true), @extschema@.lease_discovery_items($1, $2, $3)"
        }
    };
    let parameters: [Parameter<'_>; 3] = [(&limit, Type::INT4), (&seconds(ttl), Type::INT4), (&worker, Type::TEXT)];
    let rows = session.query(text, &parameters).await?;
    let mut batch = Batch::default();
    for row in &rows {
        batch.items.push(Leased { id: cell(row, 0)?, attempts: cell(row, 1)?, topic: cell(row, 3)? });
        batch.token = cell(row, 2)?;
    }
    Ok(batch)
}

/// What became of an item.
pub struct Processed {
    pub id: i64,
    pub held: bool,
    pub status: Option<String>,
    pub error: Option<String>,
}

/// Does the work of leased items and acknowledges it.
pub async fn process(session: &mut Session, queue: Queue, ids: &[i64], token: Uuid) -> Result<Vec<Processed>, Failure> {
    let text = format!("SELECT id, held, status, error FROM @extschema@.process_{}($1, $2)", items(queue));
    let rows = session.query(&text, &leased(&ids, &token)).await?;
    let rows = rows.iter().map(|row| {
        Ok(Processed { id: cell(row, 0)?, held: cell(row, 1)?, status: cell(row, 2)?, error: cell(row, 3)? })
    });
    rows.collect()
}

/// Records that leased items failed, for another try.
pub async fn fail(
    session: &mut Session,
    queue: Queue,
    ids: &[i64],
    token: Uuid,
    error: &str,
) -> Result<Vec<Processed>, Failure> {
    let text = format!("SELECT id, held, status FROM @extschema@.fail_{}($1, $2, $3, true)", items(queue));
    let [ids, token] = leased(&ids, &token);
    let rows = session.query(&text, &[ids, token, (&error, Type::TEXT)]).await?;
    let rows = rows.iter().map(|row| {
        Ok(Processed { id: cell(row, 0)?, held: cell(row, 1)?, status: cell(row, 2)?, error: Some(error.to_string()) })
    });
    rows.collect()
}

/// Gives leased items back; returns how many were still held.
pub async fn release(session: &mut Session, queue: Queue, ids: &[i64], token: Uuid) -> Result<i64, Failure> {
    let text = format!("SELECT count(*) FILTER (WHERE held) FROM @extschema@.release_{}($1, $2)", items(queue));
    cell(&session.query_one(&text, &leased(&ids, &token)).await?, 0)
}

/// Deletes up to this many ended items that are older than their topic keeps them; returns how many.
pub async fn expire(session: &mut Session, queue: Queue, most: i32) -> Result<i64, Failure> {
    let text = format!("SELECT @extschema@.expire_{}($1)", items(queue));
    cell(&session.query_one(&text, &[(&most, Type::INT4)]).await?, 0)
}

/// Lengthens a lease, to this long from now.
pub async fn extend(
    session: &mut Session,
    queue: Queue,
    ids: &[i64],
    token: Uuid,
    ttl: Duration,
) -> Result<(), Failure> {
    let text = format!("SELECT count(*) FROM @extschema@.extend_{}($1, $2, $3)", items(queue));
    let [ids, token] = leased(&ids, &token);
    session.query(&text, &[ids, token, (&seconds(ttl), Type::INT4)]).await.map(|_| ())
}

fn leased<'a>(ids: &'a &'a [i64], token: &'a Uuid) -> [Parameter<'a>; 2] {
    [(ids, Type::INT8_ARRAY), (token, Type::UUID)]
}

/// Whole seconds of a lease, which lasts a day at most.
fn seconds(ttl: Duration) -> i32 {
    i32::try_from(ttl.as_secs_f64().ceil() as i64).map_or(LONGEST_LEASE, |seconds| seconds.clamp(1, LONGEST_LEASE))
}

/// What a worker tells about itself.
pub struct Beat<'a> {
    pub worker: &'a str,
    pub host: &'a str,
    pub pid: i32,
    pub version: &'a str,
    pub started_at: SystemTime,
    pub state: &'a str,
    pub waiting: bool,
    pub leased: i32,
    pub events_done: i64,
    pub last_error: Option<&'a str>,
    pub pool: PoolState,
    pub trust_timeout: Duration,
    pub trust_callers: usize,
    pub trust_stop: Option<(&'a str, SystemTime)>,
}

/// Renews the heartbeat row, without waiting for the disk: the next one follows anyway.
pub async fn worker_beat(session: &mut Session, beat: &Beat<'_>) -> Result<(), Failure> {
    let text = "SELECT set_config('synchronous_commit', 'off', true), \
                       @extschema@.worker_beat($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)";
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let pool = [beat.pool.in_use, beat.pool.idle, beat.pool.waiting, beat.pool.max].map(count);
    let (stop, stopped_at) = beat.trust_stop.unzip();
    let (timeout, callers) = (beat.trust_timeout.as_secs_f64(), count(beat.trust_callers));
    let parameters: [Parameter<'_>; 18] = [
        (&beat.worker, Type::TEXT),
        (&beat.host, Type::TEXT),
        (&beat.pid, Type::INT4),
        (&beat.version, Type::TEXT),
        (&beat.started_at, Type::TIMESTAMPTZ),
        (&beat.state, Type::TEXT),
        (&beat.waiting, Type::BOOL),
        (&beat.leased, Type::INT4),
        (&beat.events_done, Type::INT8),
        (&beat.last_error, Type::TEXT),
        (&pool[0], Type::INT4),
        (&pool[1], Type::INT4),
        (&pool[2], Type::INT4),
        (&pool[3], Type::INT4),
        (&timeout, Type::FLOAT8),
        (&callers, Type::INT4),
        (&stop, Type::TEXT),
        (&stopped_at, Type::TIMESTAMPTZ),
    ];
    session.query(text, &parameters).await.map(|_| ())
}

/// What one call of `trust_recompute` did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recomputed {
    pub processed: i64,
    pub failed: i64,
    pub remaining: i64,
    pub seconds: f64,
    pub avg_weight_variance: f64,
    pub timed_out: bool,
}

/// Recomputes the scores of dirty scenes, in a region if one is named.
pub async fn trust_recompute(
    session: &mut Session,
    batch_size: i32,
    timeout: Duration,
    region: Option<&str>,
) -> Result<Recomputed, Failure> {
    let of_region = if region.is_some() { ", region => $3" } else { "" };
    let text = format!(
        "SELECT processed, failed, remaining, duration_ms / 1000, avg_weight_variance, timed_out \
           FROM @extschema@.trust_recompute($1, make_interval(secs => $2){of_region})"
    );
    let timeout = timeout.as_secs_f64();
    let mut parameters: Vec<Parameter<'_>> = vec![(&batch_size, Type::INT4), (&timeout, Type::FLOAT8)];
    if let Some(region) = &region {
        parameters.push((region, Type::TEXT));
    }
    let row = session.query_one(&text, &parameters).await?;
    Ok(Recomputed {
        processed: cell(&row, 0)?,
        failed: cell(&row, 1)?,
        remaining: cell(&row, 2)?,
        seconds: cell(&row, 3)?,
        avg_weight_variance: cell(&row, 4)?,
        timed_out: cell(&row, 5)?,
    })
}

/// The same, while the server sends its progress. A session of its own must be given, which ends with a failure.
pub async fn trust_recompute_telling(
    session: &mut Session,
    batch_size: i32,
    timeout: Duration,
    region: Option<&str>,
) -> Result<Recomputed, Failure> {
    session.query("BEGIN ISOLATION LEVEL READ COMMITTED", &[]).await?;
    session.query("SELECT set_config('client_min_messages', 'debug1', true)", &[]).await?;
    let run = trust_recompute(session, batch_size, timeout, region).await?;
    session.query("COMMIT", &[]).await?;
    Ok(run)
}

/// A recompute that failed as a whole, and so could record nothing itself.
#[derive(Debug, Clone)]
pub struct Broken {
    pub started_at: SystemTime,
    pub took: Duration,
    pub dirty: i64,
    pub error: String,
}

/// Records it.
pub async fn record_broken(session: &mut Session, broken: &Broken) -> Result<(), Failure> {
    let text = "SELECT @extschema@.record_trust_run($1, $2, 0, 0, 0, $3, 0, false, $4)";
    let duration_ms = broken.took.as_secs_f64() * 1000.0;
    let parameters: [Parameter<'_>; 4] = [
        (&broken.started_at, Type::TIMESTAMPTZ),
        (&duration_ms, Type::FLOAT8),
        (&broken.dirty, Type::INT8),
        (&broken.error, Type::TEXT),
    ];
    session.query(text, &parameters).await.map(|_| ())
}

/// A line of `vw_trust_metrics`.
#[derive(Debug, Clone)]
pub struct Sample {
    pub metric: String,
    pub kind: String,
    pub le: Option<String>,
    pub value: f64,
    pub help: String,
}

/// The metrics of trust.
pub async fn trust_metrics(session: &mut Session) -> Result<Vec<Sample>, Failure> {
    let text = "SELECT metric, kind, le, value, help FROM @extschema@.vw_trust_metrics";
    let rows = session.query(text, &[]).await?;
    let rows = rows.iter().map(|row| {
        Ok(Sample {
            metric: cell(row, 0)?,
            kind: cell(row, 1)?,
            le: cell(row, 2)?,
            value: cell(row, 3)?,
            help: cell(row, 4)?,
        })
    });
    rows.collect()
}

/// Deletes up to this many recorded recomputes that are older than is kept; returns how many.
pub async fn expire_trust_runs(session: &mut Session, most: i32) -> Result<i64, Failure> {
    cell(&session.query_one("SELECT @extschema@.expire_trust_runs($1)", &[(&most, Type::INT4)]).await?, 0)
}

/// The same of the history of scores.
pub async fn expire_trust_history(session: &mut Session, most: i32) -> Result<i64, Failure> {
    cell(&session.query_one("SELECT @extschema@.expire_trust_history($1)", &[(&most, Type::INT4)]).await?, 0)
}

/// The same of recorded propagations.
pub async fn expire_trust_propagation_runs(session: &mut Session, most: i32) -> Result<i64, Failure> {
    cell(&session.query_one("SELECT @extschema@.expire_trust_propagation_runs($1)", &[(&most, Type::INT4)]).await?, 0)
}

/// Dirty scenes that are not quarantined, of a region if one is named, and how many of them failed and will be tried again.
pub async fn dirty_scenes(session: &mut Session, region: Option<&str>) -> Result<(i64, i64), Failure> {
    let row = match region {
        None => {
            let text = "SELECT greatest(dirty_scenes - quarantined, 0), retrying FROM @extschema@.vw_trust_health";
            session.query_one(text, &[]).await?
        }
        Some(region) => {
            let text = "SELECT count(DISTINCT d.scene_id), count(DISTINCT d.scene_id) FILTER (WHERE d.attempts > 0) \
                          FROM @extschema@.trust_dirty d JOIN @extschema@.scenes s ON s.id = d.scene_id \
                         WHERE d.quarantined_at IS NULL AND starts_with(s.coarse_geohash, $1)";
            session.query_one(text, &[(&region, Type::TEXT)]).await?
        }
    };
    Ok((cell(&row, 0)?, cell(&row, 1)?))
}

/// A scene that could not be recomputed.
pub struct SceneFailure {
    pub mark: i64,
    pub attempts: i32,
    pub scene: Uuid,
    pub error: String,
}

/// Scenes that failed: those that will be tried again, and those quarantined within this time.
pub async fn scene_failures(session: &mut Session, within: Duration) -> Result<Vec<SceneFailure>, Failure> {
    let text = "SELECT generation, attempts, scene_id, coalesce(last_error, '') FROM @extschema@.trust_dirty \
                 WHERE attempts > 0 AND (quarantined_at IS NULL OR quarantined_at > clock_timestamp() - make_interval(secs => $1)) \
                 ORDER BY generation LIMIT 10000";
    let rows = session.query(text, &[(&within.as_secs_f64(), Type::FLOAT8)]).await?;
    let rows = rows.iter().map(|row| {
        Ok(SceneFailure { mark: cell(row, 0)?, attempts: cell(row, 1)?, scene: cell(row, 2)?, error: cell(row, 3)? })
    });
    rows.collect()
}

/// Items of a queue that wait or are leased, by anyone; without those that no worker takes by itself.
pub async fn items_left(session: &mut Session, queue: Queue) -> Result<i64, Failure> {
    let text = match queue {
        Queue::Events => {
            "SELECT coalesce(sum(v.ct), 0)::bigint FROM @extschema@.vw_events_queue_health v LEFT JOIN @extschema@.event_topics t USING (topic) \
              WHERE v.status IN ('queued', 'leased') AND t.state IS DISTINCT FROM 'paused' AND NOT (t.registered AND t.handler IS NULL) IS TRUE"
        }
        Queue::Discovery => {
            "SELECT coalesce(sum(v.ct), 0)::bigint FROM @extschema@.vw_discovery_queue_health v LEFT JOIN @extschema@.event_topics t \
                 ON t.topic = 'marketplace.discovery' WHERE v.status IN ('queued', 'processing') AND t.state IS DISTINCT FROM 'paused'"
        }
    };
    cell(&session.query_one(text, &[]).await?, 0)
}

/// Makes a connection receive the notifications of `wake_workers`.
pub const LISTEN: &str = "LISTEN pgsteward";
