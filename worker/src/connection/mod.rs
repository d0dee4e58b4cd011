//! Connections to one database: a pool of prepared sessions, and single connections for LISTEN.

pub mod address;
mod cancel;
mod conninfo;
pub mod failure;
mod pgpass;
mod tls;

use crate::problem::Problem;
use crate::sql;
use address::Address;
use cancel::Canceller;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use failure::Failure;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::error::DbError;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Opening a connection, with TLS and login, may take this long beyond its connect_timeout.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// A server that cancels a statement by itself, or was asked to, gets this long to say so.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

/// A parameter of a statement with its type.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// What a connection of `Database::connect` needs to be driven.
pub type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// How the sessions of a database are to be used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Sessions that are open at the same time.
    pub sessions: usize,
    /// After this a statement is cancelled.
    pub statement_timeout: Option<Duration>,
    /// A pooler stands in between: every transaction may run in another session, so nothing is set in any of them.
    pub pooled: bool,
}

/// How many sessions of a pool do what.
#[derive(Debug, Clone, Copy)]
pub struct PoolState {
    pub in_use: usize,
    pub idle: usize,
    /// Tasks that wait for a session.
    pub waiting: usize,
    pub max: usize,
}

/// A database that sessions are opened to.
pub struct Database {
    pub address: Address,
    tls: MakeRustlsConnect,
    pool: Pool,
    usage: Usage,
    limit: Option<Duration>,
    /// Where the extension is, quoted, as the last connection has found it.
    schema: Arc<watch::Sender<String>>,
    /// How to reach the pooler, if there is one.
    pooler: Option<Arc<Config>>,
}

impl Database {
    /// Prepares a pool; nothing connects yet.
    pub fn new(mut address: Address, application: &str, usage: Usage) -> Result<Self, Problem> {
        address.config.application_name(application);
        let tls = tls::connector(&address)?;
        let manager = Manager::from_config(
            address.config.clone(),
            tls.clone(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let create = address.config.get_connect_timeout().copied().unwrap_or_default() + LOGIN_LIMIT;
        let schema = Arc::new(watch::Sender::default());
        let found = Arc::clone(&schema);
        let prepare = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let found = Arc::clone(&found);
            Box::pin(async move {
                let schema = match usage.pooled {
                    true => sql::schema(client).await,
                    false => sql::prepare(client, usage.statement_timeout).await,
                };
                found.send_replace(schema.map_err(HookError::Backend)?.unwrap_or_default());
                Ok(())
            })
        });
        let pool = Pool::builder(manager)
            .max_size(usage.sessions)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(create))
            .post_create(prepare)
            .build()
            .map_err(|error| Problem::failure(format!("cannot set up connections: {error}")))?;
        // A direct session cancels by itself; the client steps in only if it does not.
        let grace = if usage.pooled { Duration::ZERO } else { ANSWER_GRACE };
        let limit = usage.statement_timeout.map(|limit| limit + grace);
        let pooler = usage.pooled.then(|| Arc::new(address.config.clone()));
        Ok(Self { address, tls, pool, usage, limit, schema, pooler })
    }

    /// A session from the pool.
    pub async fn session(&self) -> Result<Session, Failure> {
        let client = self.pool.get().await?;
        let schema = self.schema.borrow().clone();
        let pooler = self.pooler.clone();
        Ok(Session { client: Some(Owned::Pooled(client)), tls: self.tls.clone(), limit: self.limit, schema, pooler })
    }

    /// How the pool fares.
    pub fn pool(&self) -> PoolState {
        let status = self.pool.status();
        let idle = status.available.min(status.size);
        PoolState { in_use: status.size - idle, idle, waiting: status.waiting, max: status.max_size }
    }

    /// A session on a connection of its own, which hands over each message that the server sends beside its answers.
    pub async fn telling_session(&self, tell: impl Fn(&DbError) + Send + 'static) -> Result<Session, Failure> {
        let (client, mut driver) = self.connect().await?;
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| driver.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message {
                    tell(&notice);
                }
            }
        });
        let schema = match self.usage.pooled {
            true => sql::schema(&client).await?,
            false => sql::prepare(&client, self.usage.statement_timeout).await?,
        };
        Ok(Session {
            client: Some(Owned::Alone(client)),
            tls: self.tls.clone(),
            limit: self.limit,
            schema: schema.unwrap_or_default(),
            pooler: self.pooler.clone(),
        })
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

/// Whose a connection is.
enum Owned {
    Pooled(Object),
    Alone(Client),
}

impl Owned {
    fn client(&self) -> &Client {
        match self {
            Self::Pooled(object) => object,
            Self::Alone(client) => client,
        }
    }
}

/// One connection for some statements; it goes back to the pool unless it broke.
pub struct Session {
    client: Option<Owned>,
    tls: MakeRustlsConnect,
    limit: Option<Duration>,
    schema: String,
    pooler: Option<Arc<Config>>,
}

impl Session {
    /// Runs a statement in one round trip and returns its rows. `@extschema@` in it is the schema of the extension.
    pub async fn query(&mut self, text: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Failure> {
        let answer = self.answer(&text.replace("@extschema@", &self.schema), parameters).await;
        if answer.as_ref().is_err_and(Failure::ends_connection) {
            // Nobody else shall get a connection that is broken or still waits for an answer.
            if let Some(Owned::Pooled(object)) = self.client.take() {
                drop(Object::take(object));
            }
        }
        answer
    }

    /// The answer to a statement; it is cancelled if that takes too long.
    async fn answer(&self, text: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Failure> {
        let (Some(client), Some(canceller)) = (&self.client, self.canceller()) else {
            return Err(Failure::closed());
        };
        let mut answer = pin!(client.client().query_typed(text, parameters));
        let Some(limit) = self.limit else {
            return Ok(answer.await?);
        };
        if let Ok(answer) = timeout(limit, &mut answer).await {
            return Ok(answer?);
        }
        canceller.cancel().await;
        match timeout(ANSWER_GRACE, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failure::timeout(limit + ANSWER_GRACE)),
        }
    }

    /// Runs a statement that returns exactly one row.
    pub async fn query_one(&mut self, text: &str, parameters: &[Parameter<'_>]) -> Result<Row, Failure> {
        let rows = self.query(text, parameters).await?;
        rows.into_iter().next().ok_or_else(Failure::no_row)
    }

    /// What can cancel the statement that this session runs.
    pub fn canceller(&self) -> Option<Canceller> {
        let client = self.client.as_ref()?;
        Some(Canceller { token: client.client().cancel_token(), tls: self.tls.clone(), pooler: self.pooler.clone() })
    }
}
