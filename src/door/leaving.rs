//! How a connection learns that the gateway is on its way out, and that the time for what is under way is over.

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pingora::protocols::raw_connect::ProxyDigest;
use pingora::server::ShutdownWatch;
use tokio::task::coop::unconstrained;
use tokio::time::{Sleep, sleep};

use super::facts::carried;
use super::{Common, Draining, Permits, stopped};

/// How long idle connections stay open while the gateway is on its way out.
const LAST_CALL: Duration = Duration::from_secs(1);
/// How long both ends of a WebSocket have to close it, once the time for what is under way is over.
pub const GOODBYE: Duration = Duration::from_millis(750);

/// What is waited for, kept from wait to wait.
type Waited = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a connection of HTTP/1 waits for beside its client.
pub(super) struct Leaving {
    draining: Draining,
    /// Kept, as to begin to listen takes longer than most requests are waited for; none once it was told.
    told: Option<Waited>,
    /// It is listened for.
    listens: bool,
    /// Not there before it was told.
    last_call: Option<Pin<Box<Sleep>>>,
    cut: Cut,
    permits: Arc<Permits>,
}

impl Leaving {
    /// A connection that carries this.
    pub(super) fn new<A>(common: &Common<A>, carrier: Arc<ProxyDigest>, shutdown: ShutdownWatch) -> Self {
        Self {
            draining: common.desk.draining.clone(),
            told: Some(Box::pin(stopped(shutdown))),
            listens: false,
            last_call: None,
            cut: Cut::new(carrier),
            permits: common.desk.permits.clone(),
        }
    }

    /// Ready after the last call, for who waits for a next request. Who does not know yet that the gateway is on its way
    /// out may have sent one already, or is about to: it is still served, and told to close (RFC 9112 s9.6).
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_told(cx));
        // A request would be cut before it is served.
        if self.cut.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // On the heap: most connections never wait for it.
        self.last_call.get_or_insert_with(|| Box::pin(sleep(LAST_CALL))).as_mut().poll(cx)
    }

    /// Has a request served to its end, which comes early when its time is over.
    pub(super) async fn see_off<T>(&mut self, mut request: Pin<Box<impl Future<Output = T>>>) -> T {
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(served) = request.as_mut().poll(cx) {
                    return Poll::Ready(served);
                }
                ready!(self.poll_told(cx));
                ready!(self.cut.poll(cx));
                // It learns of its end from its connection, which it looks at again now.
                self.permits.cut();
            }
        })
        .await
    }

    /// Ready once the gateway is on its way out. For the task that asked first: who listens is woken then, and before
    /// that there is nothing to ask for.
    fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.listens, true) && !self.draining.is_on() {
            return Poll::Pending;
        }
        if let Some(told) = &mut self.told {
            // Also at the end of a long turn, when tokio would have it wait for the next one, unheard.
            ready!(pin!(unconstrained(told.as_mut())).poll(cx));
            self.told = None;
        }
        Poll::Ready(())
    }
}

/// The end of the time for what is under way on a connection.
pub(super) struct Cut {
    carrier: Arc<ProxyDigest>,
    /// Not there before the gateway is on its way out.
    due: Option<Waited>,
    is_over: bool,
}

impl Cut {
    /// The end of what is under way on the connection that carries this.
    pub(super) fn new(carrier: Arc<ProxyDigest>) -> Self {
        Self { carrier, due: None, is_over: false }
    }

    /// Ready once, when the time is over, which the connection knows from then on. Only for who was told that the gateway
    /// is on its way out: before, each connection would pay for it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { carrier, due, is_over } = self;
        if *is_over {
            return Poll::Pending;
        }
        let new = || -> Waited { Box::pin(over(carrier.clone())) };
        ready!(due.get_or_insert_with(new).as_mut().poll(cx));
        *is_over = true;
        if let Some(carried) = carried(carrier) {
            carried.stop();
        }
        Poll::Ready(())
    }
}

/// Waits for the end of the time; a WebSocket is closed in words first.
async fn over(carrier: Arc<ProxyDigest>) {
    let Some(carried) = carried(&carrier) else { return pending().await };
    stopped(carried.over.watch()).await;
    if carried.tunnelled.get().is_some() {
        sleep(GOODBYE).await;
    }
}
