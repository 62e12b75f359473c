//! A connection that speaks HTTP/2: its requests run side by side, and those that Pingora refuses before
//! anyone sees them are counted and logged.

mod stream;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use h2::Reason;
use http::Method;
use pingora::apps::HttpServerApp;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Accept, HttpSession, default_h2_options, handshake};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{GetProxyDigest, GetSocketDigest, GetTimingDigest, Ssl};
use pingora::server::ShutdownWatch;
use tollhouse_filters::outcome::Body;

use super::alarm::Alarm;
use super::facts::carried;
use super::leaving::Cut;
use super::patience::Patience;
use super::permits::Owing;
use super::refusal::{PATIENCE, Seen, new_id, report, told};
use super::stream::DoorStream;
use super::{Application, Common, HeadLimits, Permits, Rule};
use crate::engine::Rendered;

pub use stream::Http2Stream;

/// Requests of one connection that may be refused unread before its client is told to go.
const MAX_REFUSED: usize = 32;
/// As many before it is ended, with all that is under way on it.
const MOST_REFUSED: usize = 2 * MAX_REFUSED;

/// Serves a connection to its end.
pub(super) async fn serve<A>(common: Arc<Common<A>>, stream: Box<DoorStream>, shutdown: ShutdownWatch)
where
    A: Application,
{
    let (facts, carrier) = (stream.facts().clone(), stream.carrier());
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let limits = **common.desk.limits.load();
    let mut options = common.app.pingora().h2_options().unwrap_or_else(default_h2_options);
    options.max_header_list_size(limits.header_list());
    // Who leaves in the middle of it needs no line in the log.
    let Ok(mut connection) = handshake(stream, Some(options)).await else { return };
    let mut turns = Turns::new(carrier, shutdown.clone(), limits, common.desk.permits.clone());
    let mut refused = 0;
    loop {
        let turn = turns.next(HttpSession::from_h2_conn(&mut connection, digest.clone())).await;
        match turn {
            Turn::Leave => connection.graceful_shutdown(),
            Turn::Over => {
                turns.cut_off();
                connection.abrupt_shutdown(Reason::NO_ERROR);
            }
            // RFC 9113 s9.1.
            Turn::Idle => connection.abrupt_shutdown(Reason::NO_ERROR),
            Turn::Broken(rule) => {
                turns.break_off(rule);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            Turn::Accepted(Ok(None) | Err(_)) => return,
            Turn::Accepted(Ok(Some(H2Accept::Session(session)))) => {
                let limits = common.desk.limits.load();
                let stream = Http2Stream::new(session, &limits);
                // One that was told to go stays so.
                turns.limits = turns.limits.map(|_| **limits);
                let request = request(common.clone(), stream, turns.begin(), shutdown.clone());
                // In a box, since the runtime moves what it runs whenever it begins or ends.
                pingora_runtime::current_handle().spawn(Box::pin(request));
            }
            Turn::Accepted(Ok(Some(H2Accept::Rejected))) => {
                report(&common, &facts, Rule::Malformed, &new_id(), &Seen::of_http2());
                refused += 1;
                match refused {
                    // What is under way may be of others, whose proxy the client is (RFC 9113 s6.8).
                    MAX_REFUSED => connection.graceful_shutdown(),
                    MOST_REFUSED => {
                        turns.break_off(Rule::Malformed);
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Has one request served.
async fn request<A: Application>(
    common: Arc<Common<A>>,
    mut stream: Http2Stream,
    _open: Guard,
    shutdown: ShutdownWatch,
) {
    if stream.request().method == Method::CONNECT {
        return Box::pin(refuse(&common, stream)).await;
    }
    match common.app.serve_http2(&mut stream).await {
        Ok(()) => stream.finish().await,
        Err(left) => {
            let session = ServerSession::new_http2(stream.into_session(left));
            // On the heap, or every request would have its room.
            Box::pin(common.app.pingora().process_new_http(session, &shutdown)).await;
        }
    }
}

/// Tells who asks for a tunnel that there are none, as over HTTP/1.1; Pingora would do so without a word in the log.
async fn refuse<A: Application>(common: &Common<A>, stream: Http2Stream) {
    let authority = stream.request().uri.authority().map(ToString::to_string).unwrap_or_default();
    let request_id = new_id();
    let Rendered { head, body } = told(Rule::Connect, &request_id);
    let Body::Bytes(body) = body else { return };
    let seen = Seen::of_connect(&authority, body.len());
    report(common, stream.facts(), Rule::Connect, &request_id, &seen);
    let mut session = stream.into_session(None);
    session.set_write_timeout(Some(PATIENCE));
    if session.write_response_header(Box::new(head), false).is_ok() {
        // Who leaves meanwhile needs no line in the log.
        let _ = session.write_body(body, true).await;
    }
}

/// What a connection does next.
#[expect(clippy::large_enum_variant, reason = "nobody keeps one, and a box would be one for each request")]
enum Turn {
    /// The gateway is on its way out, and the client is to be told.
    Leave,
    /// The time for what is under way is over.
    Over,
    /// It was idle for too long.
    Idle,
    /// Its client does by this rule what ends it.
    Broken(Rule),
    /// A request came, or the connection ended.
    Accepted(pingora::Result<Option<H2Accept>>),
}

/// What a connection waits for; kept from wait to wait, as to begin to wait takes longer than most waits.
struct Turns<L> {
    carrier: Arc<ProxyDigest>,
    leaving: Option<Pin<Box<L>>>,
    cut: Cut,
    open: Arc<Open>,
    /// How long it may be idle, and its client be waited for; none once it was told to go.
    limits: Option<HeadLimits>,
    /// Since when nothing is under way.
    since: Option<Instant>,
    taking: Option<Taking>,
    permits: Arc<Permits>,
    /// While its client waits for something and the gateway is on its way out.
    owing: Option<Owing>,
    alarm: Alarm,
    /// It had its turn after all that could run when it was woken.
    is_last: bool,
    /// Requests that were open at the last turn.
    were_open: usize,
}

impl Turns<()> {
    /// A connection with these limits.
    fn new(
        carrier: Arc<ProxyDigest>,
        mut shutdown: ShutdownWatch,
        limits: HeadLimits,
        permits: Arc<Permits>,
    ) -> Turns<impl Future<Output = ()>> {
        let leaving = async move { drop(shutdown.wait_for(|on| *on).await) };
        Turns {
            cut: Cut::new(carrier.clone()),
            carrier,
            leaving: Some(Box::pin(leaving)),
            open: Arc::default(),
            limits: Some(limits),
            since: None,
            taking: None,
            permits,
            owing: None,
            alarm: Alarm::default(),
            is_last: false,
            were_open: 0,
        }
    }
}

impl<L: Future<Output = ()>> Turns<L> {
    /// Counts a request as open until what it gives is dropped.
    fn begin(&mut self) -> Guard {
        (self.since, self.taking) = (None, None);
        self.open.count.fetch_add(1, Ordering::Relaxed);
        Guard(self.open.clone())
    }

    async fn next(&mut self, accept: impl Future<Output = pingora::Result<Option<H2Accept>>>) -> Turn {
        let mut accept = pin!(accept);
        poll_fn(|cx| {
            let open = self.open.count.load(Ordering::Relaxed);
            let are_several = open.max(self.were_open) > 1;
            // It is woken by the first answer: it lets all others come before it, and sends them together.
            if are_several && !self.is_last {
                self.is_last = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.cork(are_several);
            let mut turn = self.poll_next(cx, accept.as_mut());
            self.cork(false);
            if are_several && turn.is_pending() {
                turn = self.poll_next(cx, accept.as_mut());
            }
            if turn.is_pending() {
                // Only now: what was corked had not been sent to its end.
                turn = self.poll_rest(cx);
            }
            (self.is_last, self.were_open) = (turn.is_ready(), open);
            turn
        })
        .await
    }

    /// Whether what is written waits for more; the library would send each answer by itself.
    fn cork(&self, is_on: bool) {
        if let Some(carried) = carried(&self.carrier) {
            carried.corked.store(is_on, Ordering::Relaxed);
        }
    }

    /// Notes the rule by which the connection ends; nothing is waited for any more.
    fn break_off(&mut self, rule: Rule) {
        self.limits = None;
        if let Some(carried) = carried(&self.carrier) {
            carried.break_off(rule);
        }
    }

    /// Whatever is under way had its time; nothing is waited for any more.
    fn cut_off(&mut self) {
        if self.open.count.load(Ordering::Relaxed) > 0 || self.unfinished().is_some() {
            self.permits.cut();
        }
        (self.limits, self.owing) = (None, None);
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        accept: Pin<&mut impl Future<Output = pingora::Result<Option<H2Accept>>>>,
    ) -> Poll<Turn> {
        if let Some(leaving) = &mut self.leaving {
            if leaving.as_mut().poll(cx).is_ready() {
                self.leaving = None;
                return Poll::Ready(Turn::Leave);
            }
        } else if self.cut.poll(cx).is_ready() {
            return Poll::Ready(Turn::Over);
        }
        accept.poll(cx).map(Turn::Accepted)
    }

    /// What becomes of it while no request comes.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.count();
        let turn = ready!(self.poll_idle(cx));
        self.limits = None;
        Poll::Ready(turn)
    }

    /// Has the connection counted while its client waits for something. Only who waits for the end asks for that: before,
    /// each request would pay for it.
    fn count(&mut self) {
        let owes = self.leaving.is_none() && self.limits.is_some() && self.unfinished().is_some();
        if owes != self.owing.is_some() {
            self.owing = owes.then(|| self.permits.owe());
        }
    }

    /// Ready when nothing has been under way for as long as that may be, or all that is waits for the client for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let Some(limits) = self.limits else { return Poll::Pending };
        self.open.last.register(cx.waker());
        if self.open.count.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        if let Some(sent) = self.unfinished() {
            self.since = None;
            let slow = match self.taking.get_or_insert_with(|| Taking::new(&limits, sent)).due(sent) {
                Some(due) => self.alarm.poll(cx, due),
                None => Poll::Ready(()),
            };
            return slow.map(|()| Turn::Broken(Rule::SlowReader));
        }
        self.taking = None;
        // Who was told to go does so when all is answered.
        if self.leaving.is_none() {
            return Poll::Pending;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        self.alarm.poll(cx, since + limits.idle_timeout).map(|()| Turn::Idle)
    }

    /// How much content was sent so far, while there are answers that were not sent to their end: the library still
    /// has some of them when their requests are over.
    fn unfinished(&self) -> Option<u64> {
        let carried = carried(&self.carrier)?;
        carried.owes.load(Ordering::Relaxed).then(|| carried.sent.load(Ordering::Relaxed))
    }
}

/// How a client takes the rest of answers whose requests are over.
struct Taking {
    patience: Patience,
    sent: u64,
}

impl Taking {
    /// A client that is to take what comes after so much.
    fn new(limits: &HeadLimits, sent: u64) -> Self {
        Self { patience: Patience::new(limits.idle_timeout, limits.min_rate), sent }
    }

    /// Until when it is waited for, now that so much was sent; none if it took too long.
    fn due(&mut self, sent: u64) -> Option<Instant> {
        let more = usize::try_from(sent - self.sent).unwrap_or(usize::MAX);
        self.sent = sent;
        let now = Instant::now();
        let in_time = more == 0 || self.patience.moved(more, || now);
        in_time.then(|| self.patience.waits(now))
    }
}

/// How many requests of a connection are open.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    /// Who is told when the last one is over.
    last: AtomicWaker,
}

/// Counts a request as open until it is dropped.
struct Guard(Arc<Open>);

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Release) == 1 {
            self.0.last.wake();
        }
    }
}
