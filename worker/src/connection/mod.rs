//! Connections to one database: a pool of prepared sessions, and single connections for LISTEN.

pub mod address;
mod conninfo;
pub mod failure;
mod pgpass;
mod tls;

use crate::problem::Problem;
use crate::sql;
use address::Address;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use failure::Failure;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Client, Connection, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Opening a connection, with TLS and login, may take this long beyond its connect_timeout.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// The client waits this much longer than the server should need to cancel a statement by itself.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

/// A parameter of a statement with its type.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// What a connection of `Database::connect` needs to be driven.
pub type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// A database that sessions are opened to.
pub struct Database {
    pub address: Address,
    tls: MakeRustlsConnect,
    pool: Pool,
    statement_timeout: Option<Duration>,
}

impl Database {
    /// Prepares a pool; nothing connects yet.
    pub fn new(
        mut address: Address,
        application: &str,
        statement_timeout: Option<Duration>,
        sessions: usize,
    ) -> Result<Self, Problem> {
        address.config.application_name(application);
        let tls = tls::connector(&address)?;
        let manager = Manager::from_config(
            address.config.clone(),
            tls.clone(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let create = address.config.get_connect_timeout().copied().unwrap_or_default() + LOGIN_LIMIT;
        let prepare = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            Box::pin(async move { sql::prepare(client, statement_timeout).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager)
            .max_size(sessions)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(create))
            .post_create(prepare)
            .build()
            .map_err(|error| Problem::failure(format!("cannot set up connections: {error}")))?;
        Ok(Self { address, tls, pool, statement_timeout })
    }

    /// A session from the pool.
    pub async fn session(&self) -> Result<Session, Failure> {
        let client = self.pool.get().await?;
        let limit = self.statement_timeout.map(|limit| limit + ANSWER_GRACE);
        Ok(Session { client: Some(client), tls: self.tls.clone(), limit })
    }

    /// A connection of its own, to be driven by the caller.
    pub async fn connect(&self) -> Result<(Client, Driver), Failure> {
        let limit = self.address.config.get_connect_timeout().copied().unwrap_or_default() + LOGIN_LIMIT;
        match timeout(limit, self.address.config.connect(self.tls.clone())).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(Failure::timeout(limit)),
        }
    }
}

/// One connection for some statements; it goes back to the pool unless it broke.
pub struct Session {
    client: Option<Object>,
    tls: MakeRustlsConnect,
    limit: Option<Duration>,
}

impl Session {
    /// Runs a statement in one round trip and returns its rows.
    pub async fn query(&mut self, text: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Failure> {
        let Some(client) = &self.client else {
            return Err(Failure::closed());
        };
        let answer = client.query_typed(text, parameters);
        let answer = match self.limit {
            Some(limit) => timeout(limit, answer).await.map_err(|_| Failure::timeout(limit)),
            None => Ok(answer.await),
        };
        let answer = answer.and_then(|answer| answer.map_err(Failure::from));
        if answer.as_ref().is_err_and(Failure::ends_connection) {
            // Nobody else shall get a connection that is broken or still waits for an answer.
            self.client.take().map(Object::take);
        }
        answer
    }

    /// Runs a statement that returns exactly one row.
    pub async fn query_one(&mut self, text: &str, parameters: &[Parameter<'_>]) -> Result<Row, Failure> {
        let rows = self.query(text, parameters).await?;
        rows.into_iter().next().ok_or_else(Failure::no_row)
    }

    /// What can cancel the statement that this session runs.
    pub fn canceller(&self) -> Option<Canceller> {
        let client = self.client.as_ref()?;
        Some(Canceller { token: client.cancel_token(), tls: self.tls.clone() })
    }
}

/// Cancels the running statement of one session.
pub struct Canceller {
    token: CancelToken,
    tls: MakeRustlsConnect,
}

impl Canceller {
    /// Asks the server to cancel. Whether it did shows in the statement's own result.
    pub async fn cancel(&self) {
        if let Err(error) = self.token.cancel_query(self.tls.clone()).await {
            tracing::debug!(error = %Failure::from(error), "the cancel request failed");
        }
    }
}
