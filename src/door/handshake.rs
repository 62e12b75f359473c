//! The TLS handshake of a connection, under the deadline that its first request has too.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use pingora::prelude::timeout;
use pingora::server::ShutdownWatch;
use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use rustls::{CipherSuite, HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConnection};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::{StartHandshake, TlsStream};
use tollhouse_filters::context::Tls;

use super::refusal::Refusal;
use super::socket::Socket;
use super::stream::DoorStream;
use super::transport::{Secure, Transport};
use super::{Application, Common, ConnFacts, Permit, Rule, conn};
use crate::tls::{H2, HTTP_1, ServerTls, client_certificate, forwarded_certificate};

/// Encrypted bytes held for a client that reads slowly; a record has up to 16 KiB.
const HELD: usize = 32 * 1024;
/// What is read at once; nearly every first message fits.
const ROOM: usize = 2048;
/// Longest first message; those with post-quantum keys have some 2 KiB.
const LONGEST_HELLO: usize = 16 * 1024;
/// What a TLS connection begins with: a record of the handshake (RFC 8446 s5.1).
const HANDSHAKE: u8 = 22;

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client does not speak TLS.
    NotTls,
    /// It offers no protocol (ALPN) that the listener speaks.
    NoCommonProtocol,
    /// It offers no version of TLS that the listener speaks.
    NoCommonVersion,
    /// It offers no cipher suite, group or signature that the listener has.
    NoCommonCipher,
    /// It shows no certificate although it must, or one that does not hold.
    BadClientCertificate,
    /// It refuses our certificate, or breaks off for another reason of its own.
    RefusedByClient,
    /// It left.
    Closed,
    /// It took longer than `header_timeout`.
    Timeout,
    /// It does something that TLS forbids, or anything else.
    Other,
}

/// How many handshakes failed, by reason.
#[derive(Debug, Default)]
pub struct HandshakeFailures([AtomicU64; HandshakeFailure::ALL.len()]);

impl HandshakeFailure {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::NotTls,
        Self::NoCommonProtocol,
        Self::NoCommonVersion,
        Self::NoCommonCipher,
        Self::BadClientCertificate,
        Self::RefusedByClient,
        Self::Closed,
        Self::Timeout,
        Self::Other,
    ];

    /// What metrics and logs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::NoCommonProtocol => "no_common_protocol",
            Self::NoCommonVersion => "no_common_version",
            Self::NoCommonCipher => "no_common_cipher",
            Self::BadClientCertificate => "bad_client_certificate",
            Self::RefusedByClient => "refused_by_client",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Other => "other",
        }
    }

    fn of(error: &rustls::Error) -> Self {
        use PeerIncompatible as P;
        use rustls::Error as E;
        match error {
            E::NoApplicationProtocol => Self::NoCommonProtocol,
            E::PeerIncompatible(
                P::Tls12NotOffered
                | P::Tls12NotOfferedOrEnabled
                | P::ServerDoesNotSupportTls12Or13
                | P::ServerTlsVersionIsDisabledByOurConfig
                | P::SupportedVersionsExtensionRequired,
            ) => Self::NoCommonVersion,
            E::PeerIncompatible(_) => Self::NoCommonCipher,
            E::InvalidCertificate(_) | E::InvalidCertRevocationList(_) | E::NoCertificatesPresented => {
                Self::BadClientCertificate
            }
            E::AlertReceived(_) => Self::RefusedByClient,
            _ => Self::Other,
        }
    }
}

impl HandshakeFailures {
    fn add(&self, failure: HandshakeFailure) {
        self.0[failure as usize].fetch_add(1, Relaxed);
    }

    /// How many failed for this reason.
    pub fn count(&self, failure: HandshakeFailure) -> u64 {
        self.0[failure as usize].load(Relaxed)
    }
}

/// A connection before its handshake.
pub(super) struct Arrival {
    pub(super) socket: Socket,
    pub(super) facts: ConnFacts,
    pub(super) permit: Permit,
}

/// A handshake under way; boxed, so that its room is free again afterwards.
pub(super) type Handshake = Pin<Box<dyn Future<Output = Option<Box<DoorStream>>> + Send>>;

/// Serves a connection after its handshake.
pub(super) async fn serve<A>(common: Arc<Common<A>>, handshake: Handshake, shutdown: ShutdownWatch)
where
    A: Application,
{
    let begun = Instant::now();
    if let Some(stream) = handshake.await {
        conn::serve(common, stream, shutdown, begun).await;
    }
}

/// Does the handshake; none when the connection ends with it, for a reason that was counted.
pub(super) async fn shake<A: Application>(
    common: Arc<Common<A>>,
    tls: Arc<ServerTls>,
    arrival: Arrival,
) -> Option<Box<DoorStream>> {
    let Arrival { mut socket, mut facts, permit } = arrival;
    let begun = Instant::now();
    let patience = common.desk.limits.load().header_timeout;
    let listener = facts.listener;
    let mut first = Vec::new();
    let attempt = timeout(patience, greeting(&mut socket, &mut first)).await;
    let ended = |end| report(&common, listener, end);
    let accepted = match attempt.unwrap_or(Err(End::because(HandshakeFailure::Timeout))) {
        Ok(accepted) => accepted,
        Err(End { failure: Some(HandshakeFailure::NotTls), .. }) if is_request(&first) => {
            ended(End::because(HandshakeFailure::NotTls));
            let mut stream = DoorStream::new(socket, facts, &common.desk, permit);
            stream.put_lead(&first);
            let refusal = Refusal::new(&common, &stream, Rule::PlainHttp, Duration::ZERO);
            refusal.send(&mut stream).await;
            return None;
        }
        Err(end) => return ended(end),
    };
    let left = patience.saturating_sub(begun.elapsed());
    match timeout(left, finish(accepted, socket, &tls)).await {
        Ok(Ok((stream, agreed))) => {
            let agreed = Arc::new(agreed);
            let transport = Transport::Tls(Box::new(Secure::new(stream, &agreed)));
            facts.tls = Some(agreed);
            Some(Box::new(DoorStream::over(transport, facts, &common.desk, permit)))
        }
        Ok(Err(end)) => ended(end),
        Err(_) => ended(End::because(HandshakeFailure::Timeout)),
    }
}

/// Answers the client's first message and all that follows, up to the end of the handshake.
async fn finish(
    accepted: Accepted,
    socket: Socket,
    tls: &ServerTls,
) -> Result<(TlsStream<Socket>, Tls), End> {
    let started = StartHandshake::from_parts(accepted, socket);
    let config = tls.config(&started.client_hello());
    let accept = started.into_stream_with(config, |session| session.set_buffer_limit(Some(HELD)));
    let stream = accept.await.map_err(End::of)?;
    let agreed = agreed(&stream, tls).map_err(End::because)?;
    Ok((stream, agreed))
}

/// How a connection ended before its first request.
struct End {
    /// None when it never began.
    failure: Option<HandshakeFailure>,
    reason: String,
}

impl End {
    fn because(failure: HandshakeFailure) -> Self {
        Self { failure: Some(failure), reason: String::new() }
    }

    fn of(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let failure = tls.map_or(HandshakeFailure::Closed, HandshakeFailure::of);
        Self { failure: Some(failure), reason: error.to_string() }
    }
}

fn report<T, A: Application>(common: &Common<A>, listener: u16, end: End) -> Option<T> {
    let failure = end.failure?;
    common.desk.handshakes.add(failure);
    // Whoever likes can make these, so they are for who looks for them.
    let (listener, reason) = (common.listener_name(listener), failure.name());
    log::debug!(listener = &*listener, reason = reason, error = end.reason.as_str(); "TLS handshake failed");
    None
}

/// Reads the client's first message; what it says instead of one is left in `first`.
async fn greeting(socket: &mut Socket, first: &mut Vec<u8>) -> Result<Accepted, End> {
    let mut acceptor = Acceptor::default();
    let mut begun = false;
    let mut read = 0;
    loop {
        let fed = poll_fn(|cx| {
            // On the thread's stack, so that waiting costs no memory.
            let mut room = [const { MaybeUninit::uninit() }; ROOM];
            let mut room = ReadBuf::uninit(&mut room);
            let filled = ready!(Pin::new(&mut *socket).poll_read(cx, &mut room));
            Poll::Ready(filled.and_then(|()| {
                let bytes = room.filled();
                if !begun && bytes.first().is_some_and(|byte| *byte != HANDSHAKE) {
                    first.extend_from_slice(bytes);
                    return Ok(bytes.len());
                }
                feed(&mut acceptor, bytes)
            }))
        });
        match fed.await {
            Ok(0) if !begun => return Err(End { failure: None, reason: String::new() }),
            Ok(0) => return Err(End::because(HandshakeFailure::Closed)),
            Ok(_) if !first.is_empty() => return Err(End::because(HandshakeFailure::NotTls)),
            Ok(n) if read + n > LONGEST_HELLO => return Err(End::because(HandshakeFailure::Other)),
            Ok(n) => (begun, read) = (true, read + n),
            Err(_) if !begun => return Err(End { failure: None, reason: String::new() }),
            Err(error) => return Err(End::of(error)),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, alert)) => {
                tell(socket, alert).await;
                let failure = HandshakeFailure::of(&error);
                return Err(End { failure: Some(failure), reason: error.to_string() });
            }
        }
    }
}

fn feed(acceptor: &mut Acceptor, mut bytes: &[u8]) -> io::Result<usize> {
    let all = bytes.len();
    while !bytes.is_empty() && acceptor.read_tls(&mut bytes)? > 0 {}
    Ok(all)
}

async fn tell(socket: &mut Socket, mut alert: AcceptedAlert) {
    let mut bytes = Vec::new();
    if alert.write_all(&mut bytes).is_ok() {
        let _ = socket.write_all(&bytes).await;
        let _ = socket.flush().await;
    }
}

/// Whether this looks like a request of plain HTTP: a method at least.
fn is_request(bytes: &[u8]) -> bool {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    (3..=16).contains(&method.len()) && method.iter().all(u8::is_ascii_uppercase)
}

/// What both sides agreed on, if that is enough.
fn agreed(stream: &TlsStream<Socket>, tls: &ServerTls) -> Result<Tls, HandshakeFailure> {
    let session: &ServerConnection = stream.get_ref().1;
    let protocol = match session.alpn_protocol() {
        Some(name) if name == H2.as_bytes() => Some(H2),
        Some(_) => Some(HTTP_1),
        None if tls.speaks_http1() => None,
        None => return Err(HandshakeFailure::NoCommonProtocol),
    };
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = match shown.map(client_certificate) {
        // A ticket outlives neither its certificate nor what can be said of it.
        Some(Some(certificate)) if !has_ended(certificate.not_after) => Some(certificate),
        Some(_) => return Err(HandshakeFailure::BadClientCertificate),
        None => None,
    };
    let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
    Ok(Tls {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        },
        cipher: suite.map_or("", cipher_name),
        server_name: session.server_name().map(|name| name.trim_end_matches('.').into()),
        protocol,
        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        forwarded_certificate: certificate
            .as_ref()
            .filter(|_| tls.forwards_clients())
            .map(forwarded_certificate),
        certificate,
        bound_to_name: tls.verifies_clients(),
    })
}

fn has_ended(not_after: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).is_ok_and(|now| now > not_after)
}

/// rustls has names of its own for those of TLS 1.3.
fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
