//! Taking a request in: limits, the client's address, forged fields, the path.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Instant;

use http::header::{self, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use pingora::http::RequestHeader;
use tollhouse_filters::context::{Context, RequestId, Scheme};
use tollhouse_filters::events;
use tollhouse_filters::host::host_of;
use tollhouse_filters::path::{NormalPath, PathRules, normalize};
use tollhouse_filters::problem::{self, Problem};

use super::forward::passed_here_before;
use super::head::{self, Fields};
use super::{Connection, client};
use crate::snapshot::Snapshot;

/// What the fields begin with that only trusted proxies may send, beside `Forwarded` and [`REAL_IP`]: there are more
/// of them than this gateway writes (`X-Forwarded-Prefix`, `X-Forwarded-User`), and applications believe them all.
const FORWARDING: &str = "x-forwarded-";

static REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Says which certificate a client has; nobody's copy of it is believed.
static CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Where a body ends is said by these, and by nothing that a server behind takes for them.
static FRAMING: [HeaderName; 2] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// What the gateway's own fields begin with.
const OWN: &str = "x-tollhouse-";

/// One of these is the first letter of all those but [`FRAMING`], and of few others.
const BEGINNINGS: [char; 2] = ['f', 'x'];

/// A request that was taken in.
pub(super) struct TakenIn {
    pub(super) ctx: Context,
    /// What ends it.
    pub(super) refused: Option<Problem>,
    /// The client asks for a stream of events.
    pub(super) asks_for_events: bool,
}

/// Makes the request's context, and says what is wrong with it.
pub(super) fn take_in(
    snapshot: &Snapshot,
    connection: &Connection,
    request: &mut RequestHeader,
    request_id: RequestId,
    started: Instant,
) -> TakenIn {
    let fields = Fields::of(&request.headers);
    let (has, named) = (fields.has, fields.named_host().map(Box::from));
    let mut refused = over_limits(snapshot, request, fields.size)
        .or_else(|| head::ambiguous(request, &fields, named.is_some()));
    set_origin_form(request);
    if has.length {
        head::plain_length(request);
    }
    if has.connection {
        head::release_named(request);
    }
    if has.upgrade {
        head::settle_upgrade(request);
    }
    head::join_cookies(request);
    let trusted = connection.peer.is_some_and(|peer| snapshot.server.trusted_proxies.contains(peer.ip()));
    drop_forged(snapshot, request, trusted);
    let (client, told) = client::of(snapshot, connection, request, trusted);
    let path = match normalize(raw_path(request), &snapshot.server.paths) {
        Ok(path) => path,
        Err(error) => {
            refused =
                refused.or_else(|| Some(Problem::new(&problem::INVALID_PATH).detail(error.to_string())));
            normalize("/", &PathRules::default()).expect("`/` is a valid path")
        }
    };
    if refused.is_none() {
        refused = set_path(request, &path).err();
    }
    if refused.is_none() && has.via && passed_here_before(request) {
        refused = Some(Problem::new(&problem::LOOP));
    }
    let listener = snapshot.listener(connection.listener).name.clone();
    let mut ctx = Context::new(listener, client, path, request_id, started);
    ctx.host = host(request, named);
    ctx.scheme = scheme(connection, request, trusted, told);
    let refused = refused.or_else(|| misdirected(&ctx));
    TakenIn { ctx, refused, asks_for_events: has.accept && events::are_asked_for(&request.headers) }
}

/// The problem of a head that is too large; `size` is that of its fields.
fn over_limits(snapshot: &Snapshot, request: &RequestHeader, size: usize) -> Option<Problem> {
    let limits = &snapshot.server.limits;
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target as u64 > limits.uri_bytes.get() {
        return Some(Problem::new(&problem::URI_TOO_LONG));
    }
    let over = request.headers.len() > limits.header_count.get() || size as u64 > limits.header_bytes.get();
    over.then(|| Problem::new(&problem::HEADERS_TOO_LARGE))
}

/// Drops what only this gateway, its filters and trusted proxies may say; in any spelling that an
/// upstream behind CGI's rules takes for the same name: RFC 3875 s4.1.18 makes `-` and `_` one, and some
/// servers all that is neither a letter nor a digit.
fn drop_forged(snapshot: &Snapshot, request: &mut RequestHeader, trusted: bool) {
    let distrusted = snapshot.server.client_from.distrusted();
    if let Some(name) = distrusted {
        request.remove_header(name);
    }
    // Who writes `Forwarded` writes it instead of all the others, and passes on what clients make up of these.
    let is_instead = distrusted == Some("x-forwarded-for");
    let forged = |name: &&HeaderName| {
        let text = name.as_str();
        let said = |own: &HeaderName| same_variable(own.as_str(), text);
        let begins = |own: &str| text.get(..own.len()).is_some_and(|start| same_variable(own, start));
        let alias = || text.bytes().any(|byte| byte != b'-' && is_symbol(byte));
        let ours = || {
            let standard = said(&header::FORWARDED);
            let believed = trusted && (standard || !is_instead);
            let forwarding = standard || said(&REAL_IP) || begins(FORWARDING);
            (forwarding && (!believed || alias())) || said(&CLIENT_CERTIFICATE) || begins(OWN)
        };
        (text.starts_with(BEGINNINGS) && ours())
            || (FRAMING.iter().any(said) && alias())
            || snapshot.identity_headers.iter().any(said)
            || snapshot.forcing_headers.iter().any(|own| own != *name && said(own))
    };
    // What chooses a variant is judged when the route is known.
    let chooses = |name: &&HeaderName| snapshot.forcing_headers.contains(name);
    let names = request.headers.keys().filter(|name| forged(name) && !chooses(name));
    let forged: Vec<HeaderName> = names.cloned().collect();
    for name in &forged {
        request.remove_header(name);
    }
}

/// Whether both field names, in lower case, make the same variable of CGI.
fn same_variable(a: &str, b: &str) -> bool {
    let plain = |byte: u8| if is_symbol(byte) { b'-' } else { byte };
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| plain(a) == plain(b))
}

const fn is_symbol(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric()
}

/// The path as sent: `*` for `OPTIONS *`, `/` where a URI has none.
fn raw_path(request: &RequestHeader) -> &str {
    match request.uri.path() {
        "" => "/",
        path => path,
    }
}

/// Makes an absolute target of HTTP/1 the origin form that servers are sent, and its authority the
/// `Host` where there is none (RFC 9112 s3.2.1, s3.2.2). Pingora keeps such targets beside the URI.
fn set_origin_form(request: &mut RequestHeader) {
    if request.raw_path().starts_with(b"/") || request.raw_path() == b"*" {
        return;
    }
    let Ok(target) = Uri::try_from(request.raw_path()) else { return };
    let host = target.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host.filter(|_| !request.headers.contains_key(header::HOST)) {
        let _ = request.insert_header(header::HOST, host);
    }
    let target = target.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    request.set_uri(Uri::from(target));
}

/// Puts the normalised path into the request, for filters and the upstream alike, and escapes the letters
/// of a query that no URI has (RFC 3986 s2.1).
fn set_path(request: &mut RequestHeader, path: &NormalPath) -> Result<(), Problem> {
    let query = request.uri.query();
    let sent = request.uri.path_and_query().map_or("", PathAndQuery::as_str);
    // An absolute target may have a query and no path: `http://a.test?b`.
    let whole = sent.starts_with(['/', '*']) && sent.is_ascii();
    if whole && request.uri.path() == path.wire() {
        return Ok(());
    }
    let target = match query {
        Some(query) => format!("{}?{}", path.wire(), escaped(query)),
        None => path.wire().to_owned(),
    };
    set_target(request, &target).ok_or_else(|| Problem::new(&problem::INVALID_PATH))
}

/// The query with percent-escapes for all that is not ASCII.
fn escaped(query: &str) -> Cow<'_, str> {
    if query.is_ascii() {
        return query.into();
    }
    let mut out = String::with_capacity(query.len() + 16);
    for byte in query.bytes() {
        match byte.is_ascii() {
            true => out.push(char::from(byte)),
            false => write!(out, "%{byte:02X}").expect("writing to a String cannot fail"),
        }
    }
    out.into()
}

/// Replaces path and query, keeping an authority (HTTP/2, absolute form).
pub(super) fn set_target(request: &mut RequestHeader, target: &str) -> Option<()> {
    set_path_and_query(request, PathAndQuery::try_from(target).ok()?)
}

pub(super) fn set_path_and_query(request: &mut RequestHeader, target: PathAndQuery) -> Option<()> {
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(target);
    request.set_uri(Uri::from_parts(parts).ok()?);
    Some(())
}

/// What a trusted proxy says the client spoke, in a field of its own or where it `told` who the client is, else what
/// its connection speaks.
fn scheme(connection: &Connection, request: &RequestHeader, trusted: bool, told: Option<Scheme>) -> Scheme {
    let said = trusted.then(|| request.headers.get("x-forwarded-proto")).flatten();
    let of_connection = if connection.tls.is_some() { Scheme::Https } else { Scheme::Http };
    said.map(|said| client::scheme_of(said.as_bytes())).or(told).unwrap_or(of_connection)
}

/// Who showed a certificate, or could have, did so to the host that the handshake named; a request for
/// another host must not ride on that (RFC 9110 s7.4).
fn misdirected(ctx: &Context) -> Option<Problem> {
    let tls = ctx.client.tls.as_ref().filter(|tls| tls.bound_to_name)?;
    let named = tls.server_name.as_deref()?;
    let asked = ctx.host.as_deref();
    (asked != Some(named)).then(|| {
        Problem::new(&problem::MISDIRECTED).detail("the TLS handshake named another host than the request")
    })
}

/// The host asked for; an absolute target wins over the one that `Host` named (RFC 9112 s3.2.2).
fn host(request: &RequestHeader, named: Option<Box<str>>) -> Option<Box<str>> {
    if let Some(authority) = request.uri.authority() {
        return host_of(authority.as_str()).map(Box::from);
    }
    // What had none may have got one from its target.
    named.or_else(|| host_of(request.headers.get(header::HOST)?.to_str().ok()?).map(Box::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_proxies_and_the_gateway_say_begins_with_one_of_the_beginnings() {
        for name in ["forwarded", FORWARDING, REAL_IP.as_str(), CLIENT_CERTIFICATE.as_str(), OWN] {
            assert!(name.starts_with(BEGINNINGS), "{name}");
        }
    }
}
