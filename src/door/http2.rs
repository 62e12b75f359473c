//! A connection that speaks HTTP/2: its requests run side by side, and those that Pingora refuses before
//! anyone sees them are counted and logged.

use std::sync::Arc;
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Accept, HttpSession, handshake};
use pingora::protocols::{GetProxyDigest, GetSocketDigest, GetTimingDigest, Ssl};
use pingora::server::ShutdownWatch;
use tokio::sync::watch;

use super::refusal::{Seen, report};
use super::stream::DoorStream;
use super::{Application, Common, Rule};

/// Requests of one connection that may be refused unread before it is ended.
const MAX_REFUSED: usize = 32;

/// Serves a connection to its end.
pub(super) async fn serve<A>(common: Arc<Common<A>>, stream: Box<DoorStream>, mut shutdown: ShutdownWatch)
where
    A: Application,
{
    let facts = stream.facts().clone();
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let app = common.app.pingora();
    let idle = app.server_options().and_then(|options| options.h2_idle_timeout);
    // Who leaves in the middle of it needs no line in the log.
    let Ok(mut connection) = handshake(stream, app.h2_options()).await else { return };
    let (open, mut last, mut refused) = (Open::default(), false, 0);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.wait_for(|on| *on), if !last => {
                connection.graceful_shutdown();
                last = true;
                continue;
            }
            accepted = HttpSession::from_h2_conn(&mut connection, digest.clone()) => accepted,
            () = open.idle(idle), if !last => return,
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                let (app, guard, shutdown) = (app.clone(), open.begin(), shutdown.clone());
                pingora_runtime::current_handle().spawn(async move {
                    let _open = guard;
                    app.process_new_http(ServerSession::new_http2(session), &shutdown).await;
                });
            }
            Ok(Some(H2Accept::Rejected)) => {
                report(&common, &facts, Rule::Malformed, &Seen::of_http2());
                refused += 1;
                if refused == MAX_REFUSED {
                    return;
                }
            }
            Ok(None) | Err(_) => return,
        }
    }
}

/// How many requests of a connection are open.
struct Open(watch::Sender<usize>);

/// Counts a request as open until it is dropped.
struct Guard(watch::Sender<usize>);

impl Default for Open {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Open {
    fn begin(&self) -> Guard {
        self.0.send_modify(|count| *count += 1);
        Guard(self.0.clone())
    }

    /// Waits until nothing has been open for this long; for ever without a limit.
    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
        tokio::time::sleep(limit).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
