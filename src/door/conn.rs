//! The task of one connection: it owns the connection between requests, Pingora owns each request.
//!
//! Between requests nothing is held but the stream itself: no buffer, no session, no future of Pingora.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use pingora::apps::{HttpPersistentSettings, HttpServerApp};
use pingora::prelude::timeout;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use super::head::{Head, Scanner};
use super::leaving::Leaving;
use super::refusal::{self, Refusal};
use super::stream::{DoorStream, PREFACE};
use super::{Application, Common, Connection, HeadLimits, Rule, Served, http2};

/// Seconds that Pingora may wait for a next request; it never does, since the door does the waiting.
const KEEPALIVE: u64 = 60;

/// Serves a connection to its end; its first head has a deadline that began when it did.
pub(super) async fn serve<A>(
    common: Arc<Common<A>>,
    mut stream: Box<DoorStream>,
    shutdown: ShutdownWatch,
    begun: Instant,
) where
    A: Application,
{
    let mut settings = None;
    let mut leaving = Leaving::new(&common, stream.carrier(), shutdown.clone());
    let mut awaited = Awaited { since: Some(begun), preface: Preface::of(&common, &stream) };
    loop {
        let (came, waited) = next(&common, &mut stream, &mut leaving, awaited).await;
        let head = match came {
            Next::Request(head) => head,
            Next::Http2 => {
                stream.open(&common.desk.limits.load());
                let carrier = stream.carrier();
                // On the heap, or every connection would have its room.
                Box::pin(http2::serve(common.clone(), stream, shutdown)).await;
                return refusal::ended(&common, &carrier);
            }
            Next::Refused(rule) => {
                return Refusal::new(&common, &stream, rule, waited).send(&mut stream).await;
            }
            Next::Closed => return stream.leave(),
        };
        // For the same reason.
        let request = Box::pin(request(&common, stream, head, settings, &shutdown));
        match leaving.see_off(request).await {
            Some((kept, remembered)) => (stream, settings) = (kept, remembered),
            None => return,
        }
        awaited = Awaited { since: None, preface: Preface::None };
    }
}

/// What is waited for.
#[derive(Clone, Copy)]
struct Awaited {
    /// The begin of the connection, before its first request.
    since: Option<Instant>,
    preface: Preface,
}

/// Whether a client may begin with the preface of HTTP/2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preface {
    /// It must: that was agreed on in the TLS handshake.
    Certain,
    /// It may, if it knows that HTTP/2 is spoken here.
    Possible,
    /// It speaks HTTP/1.
    None,
}

impl Preface {
    fn of<A>(common: &Common<A>, stream: &DoorStream) -> Self {
        let listener = common.listener(stream.facts().listener);
        match stream.http2() {
            Some(true) => Self::Certain,
            None if listener.is_some_and(|listener| listener.h2c) => Self::Possible,
            _ => Self::None,
        }
    }
}

/// What a connection does next.
enum Next {
    /// A request begins, its head is in the stream's lead.
    Request(Head),
    /// The client speaks HTTP/2.
    Http2,
    /// What it says is not a request.
    Refused(Rule),
    /// Nothing.
    Closed,
}

/// Waits for a request, as long as a connection may be idle, and for its head, as long as that may take; begins it.
/// With how long that head took.
async fn next<A>(
    common: &Common<A>,
    stream: &mut DoorStream,
    leaving: &mut Leaving,
    awaited: Awaited,
) -> (Next, Duration) {
    let limits = **common.desk.limits.load();
    let spent = || awaited.since.map_or(Duration::ZERO, |begun| begun.elapsed());
    if stream.lead().is_empty() {
        let patience = match awaited.since {
            Some(_) => limits.header_timeout.saturating_sub(spent()),
            None => limits.idle_timeout,
        };
        if !begins(stream, leaving, patience).await {
            return (Next::Closed, Duration::ZERO);
        }
    }
    let mut scanner = Scanner::default();
    let (next, waited) = match read_head(stream, &mut scanner, &limits, awaited.preface) {
        // As most do.
        Some(next) => (next, Duration::ZERO),
        None => {
            let begun = Instant::now();
            let patience = limits.header_timeout.saturating_sub(spent());
            let rest = timeout(patience, rest_of_head(stream, scanner, &limits, awaited.preface));
            (rest.await.unwrap_or(Next::Refused(Rule::Slow)), begun.elapsed())
        }
    };
    if let Next::Request(head) = &next {
        stream.begin(head, &limits);
    }
    (next, waited)
}

/// Whether a first byte came in time, and before the last call.
async fn begins(stream: &mut DoorStream, leaving: &mut Leaving, patience: Duration) -> bool {
    let (mut due, since) = (None, stream.take_rest());
    poll_fn(|cx| {
        if let Poll::Ready(came) = stream.poll_lead(cx) {
            return Poll::Ready(matches!(came, Ok(n) if n > 0));
        }
        let due = *due.get_or_insert_with(|| since.unwrap_or_else(Instant::now) + patience);
        let over = leaving.poll(cx).is_ready() || stream.alarm().poll(cx, due).is_ready();
        if over { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

/// Reads on until the head is whole or wrong.
async fn rest_of_head(
    stream: &mut DoorStream,
    mut scanner: Scanner,
    limits: &HeadLimits,
    preface: Preface,
) -> Next {
    loop {
        match poll_fn(|cx| stream.poll_lead(cx)).await {
            Ok(0) if stream.lead().starts_with(PREFACE) => return Next::Refused(Rule::Settings),
            Ok(0) => return Next::Refused(Rule::Unfinished),
            Ok(_) => {}
            Err(_) => return Next::Closed,
        }
        if let Some(next) = read_head(stream, &mut scanner, limits, preface) {
            return next;
        }
    }
}

/// Judges what was read so far; `None` when that is not enough.
fn read_head(
    stream: &DoorStream,
    scanner: &mut Scanner,
    limits: &HeadLimits,
    preface: Preface,
) -> Option<Next> {
    let lead = stream.lead();
    let compared = lead.len().min(PREFACE.len());
    match preface {
        Preface::Certain | Preface::Possible if PREFACE[..compared] == lead[..compared] => {
            return settings(&lead[compared..]).filter(|_| compared == PREFACE.len());
        }
        // Who agreed on HTTP/2 and speaks something else cannot be answered in either.
        Preface::Certain => return Some(Next::Closed),
        Preface::Possible | Preface::None => {}
    }
    match scanner.read(lead, limits) {
        Ok(None) => None,
        Ok(Some(head)) => Some(Next::Request(head)),
        Err(rule) => Some(Next::Refused(rule)),
    }
}

/// What HTTP/2 begins with is the preface and a SETTINGS frame (RFC 9113 s3.4, s6.5); `None` before its head is whole.
fn settings(frame: &[u8]) -> Option<Next> {
    const SETTINGS: u8 = 4;
    let [high, mid, low, kind, flags, stream @ ..] = *frame.first_chunk::<9>()?;
    let length = u32::from_be_bytes([0, high, mid, low]);
    let valid = kind == SETTINGS && flags & 1 == 0 && stream == [0; 4] && length.is_multiple_of(6);
    Some(if valid { Next::Http2 } else { Next::Refused(Rule::Settings) })
}

/// Has a request served that began; gives the connection back if it can take another.
async fn request<A: Application>(
    common: &Common<A>,
    mut stream: Box<DoorStream>,
    head: Head,
    settings: Option<HttpPersistentSettings>,
    shutdown: &ShutdownWatch,
) -> Option<(Box<DoorStream>, Option<HttpPersistentSettings>)> {
    if head.plain {
        match common.app.serve(&mut stream, &head).await {
            Served::Over(Connection::Kept) if stream.is_at_end() => return Some((stream, settings)),
            Served::Over(Connection::Kept | Connection::Closed) => {
                stream.leave();
                return None;
            }
            Served::Over(Connection::BrokenOff) => return None,
            Served::Declined(declined) => stream.put_back(declined),
        }
    }
    // On the heap, or every request would have its room.
    Box::pin(by_pingora(common, stream, &head, settings, shutdown)).await
}

/// Has Pingora serve a request that began.
async fn by_pingora<A: Application>(
    common: &Common<A>,
    mut stream: Box<DoorStream>,
    head: &Head,
    settings: Option<HttpPersistentSettings>,
    shutdown: &ShutdownWatch,
) -> Option<(Box<DoorStream>, Option<HttpPersistentSettings>)> {
    // What others sent is read first, for the same reason as on the way of plain requests.
    tokio::task::yield_now().await;
    let prefix = stream.take_prefix(head);
    let mut session = ServerSession::new_http1(stream);
    match settings {
        Some(settings) => settings.apply_to_session(&mut session),
        None => session.set_keepalive(Some(KEEPALIVE)),
    }
    session.set_pipelined_prefix(prefix);
    let (stream, settings) = common.app.pingora().process_new_http(session, shutdown).await?.consume();
    let stream = stream.into_any().downcast::<DoorStream>().ok()?;
    // A body that was not read to its end would be taken for the next request.
    stream.is_at_end().then_some((stream, settings))
}
