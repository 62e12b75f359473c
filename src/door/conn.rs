//! The task of one connection: it owns the connection between requests, Pingora owns each request.
//!
//! Between requests nothing is held but the stream itself: no buffer, no session, no future of Pingora.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::prelude::timeout;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use super::head::{Body, Head, Scanner};
use super::refusal::Refusal;
use super::stream::{DoorStream, PREFACE};
use super::{Common, Rule, stopped};

/// Seconds that Pingora may wait for a next request; it never does, since the door does the waiting.
const KEEPALIVE: u64 = 60;

/// Serves a connection to its end; its first head has a deadline that began when it did.
pub(super) async fn serve<A>(
    common: Arc<Common<A>>,
    mut stream: Box<DoorStream>,
    shutdown: ShutdownWatch,
    begun: Instant,
) where
    A: HttpServerApp + Send + Sync + 'static,
{
    let mut settings = None;
    let mut first = Some(begun);
    loop {
        let head = match next(&common, &mut stream, &shutdown, first).await {
            Next::Request(head) => head,
            Next::Http2 => {
                stream.open();
                common.app.process_new(stream, &shutdown).await;
                return;
            }
            Next::Refused(rule) => return Refusal::new(&common, &stream, rule).send(&mut stream).await,
            Next::Closed => return stream.leave(),
        };
        match request(&common, stream, head, settings, &shutdown).await {
            Some((kept, remembered)) => (stream, settings, first) = (kept, remembered, None),
            None => return,
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

/// Waits for a request, as long as a connection may be idle, and for its head, as long as that may take.
async fn next<A>(
    common: &Common<A>,
    stream: &mut DoorStream,
    shutdown: &ShutdownWatch,
    first: Option<Instant>,
) -> Next {
    let limits = common.desk.limits.load();
    let (head_timeout, idle_timeout) = (limits.header_timeout, limits.idle_timeout);
    drop(limits);
    let spent = || first.map_or(Duration::ZERO, |begun| begun.elapsed());
    if stream.lead().is_empty() {
        let patience = if first.is_some() { head_timeout.saturating_sub(spent()) } else { idle_timeout };
        if !begins(stream, shutdown, patience).await {
            return Next::Closed;
        }
    }
    let mut scanner = Scanner::default();
    let is_first = first.is_some();
    match read_head(common, stream, &mut scanner, is_first) {
        Some(next) => next,
        None => {
            let patience = head_timeout.saturating_sub(spent());
            let rest = timeout(patience, rest_of_head(common, stream, scanner, is_first));
            rest.await.unwrap_or(Next::Refused(Rule::Slow))
        }
    }
}

/// Whether a first byte came; bytes that came together with the shutdown are still served.
async fn begins(stream: &mut DoorStream, shutdown: &ShutdownWatch, patience: Duration) -> bool {
    let came = async {
        tokio::select! {
            biased;
            came = poll_fn(|cx| stream.poll_lead(cx)) => matches!(came, Ok(n) if n > 0),
            () = stopped(shutdown.clone()) => false,
        }
    };
    timeout(patience, came).await.unwrap_or(false)
}

/// Reads on until the head is whole or wrong.
async fn rest_of_head<A>(
    common: &Common<A>,
    stream: &mut DoorStream,
    mut scanner: Scanner,
    first: bool,
) -> Next {
    loop {
        match poll_fn(|cx| stream.poll_lead(cx)).await {
            Ok(0) => return Next::Refused(Rule::Unfinished),
            Ok(_) => {}
            Err(_) => return Next::Closed,
        }
        if let Some(next) = read_head(common, stream, &mut scanner, first) {
            return next;
        }
    }
}

/// Judges what was read so far; `None` when that is not enough.
fn read_head<A>(common: &Common<A>, stream: &DoorStream, scanner: &mut Scanner, first: bool) -> Option<Next> {
    let lead = stream.lead();
    if first {
        let compared = lead.len().min(PREFACE.len());
        match (stream.http2(), PREFACE[..compared] == lead[..compared]) {
            (None | Some(true), true) => return (compared == PREFACE.len()).then_some(Next::Http2),
            // Who agreed on HTTP/2 and speaks something else cannot be answered in either.
            (Some(true), false) => return Some(Next::Closed),
            _ => {}
        }
    }
    match scanner.read(lead, &common.desk.limits.load()) {
        Ok(None) => None,
        Ok(Some(head)) => Some(Next::Request(head)),
        Err(rule) => Some(Next::Refused(rule)),
    }
}

/// Has Pingora serve one request; gives the connection back if it can take another.
async fn request<A>(
    common: &Common<A>,
    mut stream: Box<DoorStream>,
    head: Head,
    settings: Option<HttpPersistentSettings>,
    shutdown: &ShutdownWatch,
) -> Option<(Box<DoorStream>, Option<HttpPersistentSettings>)>
where
    A: HttpServerApp + Send + Sync + 'static,
{
    let framed = !matches!(head.body, Body::Open);
    let prefix = stream.begin(&head);
    let mut session = ServerSession::new_http1(stream);
    match settings {
        Some(settings) => settings.apply_to_session(&mut session),
        None => session.set_keepalive(Some(KEEPALIVE)),
    }
    session.set_pipelined_prefix(prefix);
    let (stream, settings) = common.app.process_new_http(session, shutdown).await?.consume();
    let stream = stream.into_any().downcast::<DoorStream>().ok()?;
    // A body that was not read to its end would be taken for the next request.
    (framed && stream.is_at_end()).then_some((stream, settings))
}

/// Waits for the other side to close, so that it can read what it was sent: closing with bytes unread
/// would reset the connection.
pub(super) async fn linger(stream: &mut DoorStream) {
    /// How often and how long is waited, whatever the client sends.
    const READS: usize = 64;
    const PATIENCE: Duration = Duration::from_secs(1);
    let rest = async {
        for _ in 0..READS {
            if !matches!(poll_fn(|cx| stream.poll_discard(cx)).await, Ok(n) if n > 0) {
                return io::Result::Ok(());
            }
        }
        Ok(())
    };
    let _ = timeout(PATIENCE, rest).await;
}
