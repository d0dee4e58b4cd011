//! Cancel requests: straight to the server, or through a pooler.
//!
//! A request is over when the other end closes the connection. PgBouncer 1.18.0 for one breaks down, for all its clients,
//! if a client closes it earlier, as tokio-postgres does. So through a pooler the closing waits.

use crate::connection::failure::Failure;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{CancelToken, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

const DIRECT_LIMIT: Duration = Duration::from_secs(1);
const POOLED_LIMIT: Duration = Duration::from_secs(10);

/// Cancels the running statement of one session.
pub struct Canceller {
    pub token: CancelToken,
    pub tls: MakeRustlsConnect,
    /// The pooler that the session goes through, if any.
    pub pooler: Option<Arc<Config>>,
}

impl Canceller {
    /// Asks the server to cancel. Whether it did shows in the statement's own result.
    pub async fn cancel(&self) {
        let (limit, request): (_, Request) = match &self.pooler {
            Some(pooler) => (POOLED_LIMIT, through(Arc::clone(pooler), self.token.clone(), self.tls.clone())),
            None => {
                let (token, tls) = (self.token.clone(), self.tls.clone());
                (DIRECT_LIMIT, Box::pin(async move { Ok(token.cancel_query(tls).await?) }))
            }
        };
        match timeout(limit, request).await {
            Ok(Ok(())) => (),
            Ok(Err(failure)) => tracing::debug!(error = %failure, "the cancel request failed"),
            Err(_) => tracing::debug!("the cancel request was not answered"),
        }
    }
}

type Request = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Asks every host of the pooler: only the one that gave out the token knows it, and for the others it is void.
fn through(pooler: Arc<Config>, token: CancelToken, tls: MakeRustlsConnect) -> Request {
    Box::pin(async move {
        let ports = pooler.get_ports();
        let mut asked = Ok(());
        for (n, host) in pooler.get_hosts().iter().enumerate() {
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
            asked = ask(host, pooler.get_hostaddrs().get(n).copied(), port, &token, tls.clone()).await;
        }
        asked
    })
}

async fn ask(
    host: &Host,
    address: Option<IpAddr>,
    port: u16,
    token: &CancelToken,
    tls: MakeRustlsConnect,
) -> Result<(), Failure> {
    match (host, address) {
        (Host::Unix(folder), _) => {
            send(UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?, "", token, tls).await
        }
        (Host::Tcp(name), Some(address)) => send(TcpStream::connect((address, port)).await?, name, token, tls).await,
        (Host::Tcp(name), None) => send(TcpStream::connect((name.as_str(), port)).await?, name, token, tls).await,
    }
}

async fn send<S>(socket: S, name: &str, token: &CancelToken, mut tls: MakeRustlsConnect) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tls = MakeTlsConnect::<Patient<S>>::make_tls_connect(&mut tls, name).map_err(io::Error::other)?;
    Ok(token.cancel_query_raw(Patient(socket), Patient(tls)).await?)
}

/// A stream that is shut down only after the other end has closed it.
struct Patient<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut space = [0; 64];
            let mut buffer = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer));
            // Closed, in order or not: that is all the answer there is.
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: TlsStream + Unpin> TlsStream for Patient<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}

impl<S, T> TlsConnect<S> for Patient<T>
where
    T: TlsConnect<S>,
    T::Future: Send + 'static,
{
    type Stream = Patient<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connecting = self.0.connect(stream);
        Box::pin(async { connecting.await.map(Patient) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_patient_stream_is_open_until_the_other_end_closes_it() {
        let (near, mut far) = tokio::io::duplex(64);
        let closing = tokio::spawn(async move {
            let mut near = Patient(near);
            near.write_all(b"cancel").await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut received = [0; 6];
        far.read_exact(&mut received).await.unwrap();
        far.write_all(b"wait").await.unwrap();
        tokio::task::yield_now().await;
        assert!(!closing.is_finished());
        drop(far);
        closing.await.unwrap();
    }
}
