//! All SQL of the worker: one function here per SQL function that it calls.

use crate::connection::failure::Failure;
use crate::connection::{Parameter, Session};
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime};
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

fn cell<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Failure> {
    row.try_get(column).map_err(Failure::from)
}

/// Sets up a new session: where names are found, isolation and timeouts.
pub async fn prepare(client: &Client, statement_timeout: Option<Duration>) -> Result<(), Error> {
    let timeout = statement_timeout.unwrap_or_default().as_millis().to_string();
    let text = "SELECT set_config('search_path', \
                    (SELECT format('pg_catalog, %I, pg_temp', n.nspname) \
                       FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
                      WHERE e.extname = 'pgsteward'), false), \
                set_config('statement_timeout', $1, false), set_config('idle_in_transaction_session_timeout', '60s', false), \
                set_config('default_transaction_isolation', 'read committed', false)";
    client.query_typed(text, &[(&timeout, Type::TEXT)]).await.map(|_| ())
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
                 WHERE p.proname IN ('lease_events', 'process_events', 'worker_beat', 'trust_recompute')";
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
        Question::Migrate => "SELECT row_to_json(t)::text FROM steward_migrate() AS t",
        Question::Status => "SELECT row_to_json(t)::text FROM steward_schema_status() AS t",
        Question::Validate => "SELECT row_to_json(t)::text FROM steward_schema_validate() AS t",
        Question::Report => "SELECT row_to_json(t)::text FROM steward_schema_report() AS t",
        Question::Stats => "SELECT row_to_json(t)::text FROM steward_schema_stats() AS t",
        Question::Health => "SELECT row_to_json(t)::text FROM steward_health AS t",
    };
    let rows = session.query(text, &[]).await?;
    let rows = rows.iter().map(|row| Ok(serde_json::from_str(cell(row, 0)?).unwrap_or_default()));
    rows.collect()
}

/// Events leased together.
#[derive(Default)]
pub struct Batch {
    pub events: Vec<Leased>,
    pub token: Uuid,
}

/// A leased event.
pub struct Leased {
    pub id: i64,
    pub topic: String,
    pub attempts: i32,
}

/// Leases up to this many events of any topic.
pub async fn lease_events(session: &mut Session, limit: i32, ttl: i32, worker: &str) -> Result<Batch, Failure> {
    let text = "SELECT id, topic_name, attempts, lease_token FROM lease_events(NULL, $1, $2, $3)";
    let rows = session.query(text, &[(&limit, Type::INT4), (&ttl, Type::INT4), (&worker, Type::TEXT)]).await?;
    let mut batch = Batch::default();
    for row in &rows {
        batch.token = cell(row, 3)?;
        batch.events.push(Leased { id: cell(row, 0)?, topic: cell(row, 1)?, attempts: cell(row, 2)? });
    }
    Ok(batch)
}

/// What became of an event.
pub struct Processed {
    pub id: i64,
    pub held: bool,
    pub status: Option<String>,
    pub error: Option<String>,
}

/// Does the work of leased events and acknowledges it.
pub async fn process_events(session: &mut Session, ids: &[i64], token: Uuid) -> Result<Vec<Processed>, Failure> {
    let text = "SELECT id, held, status, error FROM process_events($1, $2)";
    let rows = session.query(text, &lease(&ids, &token)).await?;
    let rows = rows.iter().map(|row| {
        Ok(Processed { id: cell(row, 0)?, held: cell(row, 1)?, status: cell(row, 2)?, error: cell(row, 3)? })
    });
    rows.collect()
}

/// Records that leased events failed, for another try.
pub async fn fail_events(
    session: &mut Session,
    ids: &[i64],
    token: Uuid,
    error: &str,
) -> Result<Vec<Processed>, Failure> {
    let text = "SELECT id, held, status FROM fail_events($1, $2, $3, true)";
    let [ids, token] = lease(&ids, &token);
    let rows = session.query(text, &[ids, token, (&error, Type::TEXT)]).await?;
    let rows = rows.iter().map(|row| {
        Ok(Processed { id: cell(row, 0)?, held: cell(row, 1)?, status: cell(row, 2)?, error: Some(error.to_string()) })
    });
    rows.collect()
}

/// Gives leased events back; returns how many were still held.
pub async fn release_events(session: &mut Session, ids: &[i64], token: Uuid) -> Result<i64, Failure> {
    let text = "SELECT count(*) FILTER (WHERE held) FROM release_events($1, $2)";
    cell(&session.query_one(text, &lease(&ids, &token)).await?, 0)
}

fn lease<'a>(ids: &'a &'a [i64], token: &'a Uuid) -> [Parameter<'a>; 2] {
    [(ids, Type::INT8_ARRAY), (token, Type::UUID)]
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
}

/// Renews the heartbeat row, without waiting for the disk: the next one follows anyway.
pub async fn worker_beat(session: &mut Session, beat: &Beat<'_>) -> Result<(), Failure> {
    let text =
        "SELECT set_config('synchronous_commit', 'off', true), worker_beat($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let parameters: [Parameter<'_>; 10] = [
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

/// Recomputes the scores of dirty scenes.
pub async fn trust_recompute(session: &mut Session, batch_size: i32, timeout: Duration) -> Result<Recomputed, Failure> {
    let text = "SELECT processed, failed, remaining, duration_ms / 1000, avg_weight_variance, timed_out \
                  FROM trust_recompute($1, make_interval(secs => $2))";
    let row = session.query_one(text, &[(&batch_size, Type::INT4), (&timeout.as_secs_f64(), Type::FLOAT8)]).await?;
    Ok(Recomputed {
        processed: cell(&row, 0)?,
        failed: cell(&row, 1)?,
        remaining: cell(&row, 2)?,
        seconds: cell(&row, 3)?,
        avg_weight_variance: cell(&row, 4)?,
        timed_out: cell(&row, 5)?,
    })
}

/// Dirty scenes that are not quarantined, and how many of them failed and will be tried again.
pub async fn dirty_scenes(session: &mut Session) -> Result<(i64, i64), Failure> {
    let text = "SELECT greatest(dirty_scenes - quarantined, 0), retrying FROM vw_trust_health";
    let row = session.query_one(text, &[]).await?;
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
    let text = "SELECT generation, attempts, scene_id, coalesce(last_error, '') FROM trust_dirty \
                 WHERE attempts > 0 AND (quarantined_at IS NULL OR quarantined_at > clock_timestamp() - make_interval(secs => $1)) \
                 ORDER BY generation LIMIT 10000";
    let rows = session.query(text, &[(&within.as_secs_f64(), Type::FLOAT8)]).await?;
    let rows = rows.iter().map(|row| {
        Ok(SceneFailure { mark: cell(row, 0)?, attempts: cell(row, 1)?, scene: cell(row, 2)?, error: cell(row, 3)? })
    });
    rows.collect()
}

/// Events that are queued or leased, by anyone.
pub async fn events_left(session: &mut Session) -> Result<i64, Failure> {
    let text = "SELECT coalesce(sum(ct), 0)::bigint FROM vw_events_queue_health WHERE status IN ('queued', 'leased')";
    cell(&session.query_one(text, &[]).await?, 0)
}

/// Makes a connection receive the notifications of `wake_workers`.
pub const LISTEN: &str = "LISTEN pgsteward";
