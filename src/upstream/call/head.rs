//! Heads on the way out and in: framing, `Host`, hop-by-hop fields, limits.

use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::{ErrorType, RetryType};

use super::super::peer::host_of;
use super::{CallError, Failure};
use crate::config::upstream::Protocol;
use crate::upstream::{Fault, Picked, Upstream};

/// What the heads of answers may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Heads before the final one (1xx).
    pub(super) interim: usize,
    fields: usize,
    /// In names and values, of the final one and of all before it.
    pub(super) bytes: usize,
}

impl Most {
    /// Of what the gateway itself asks for.
    pub(super) const OWN: Self = Self { interim: 16, fields: 200, bytes: 128 << 10 };
    /// Of what a client gets, as on the other ways to it.
    pub(super) const OF_CLIENTS: Self = Self { interim: 100, fields: 256, bytes: 1 << 20 };
}

/// Fields that are about one connection (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The head to send for one attempt, which has so long.
pub(super) fn request(
    head: &RequestHeader,
    length: usize,
    (upstream, picked): (&Upstream, &Picked),
    left: Option<Duration>,
) -> Result<Box<RequestHeader>, CallError> {
    let mut request = Box::new(head.clone());
    let original = match host_of(&head.headers) {
        "" => head.uri.authority().map_or("", |authority| authority.as_str()),
        host => host,
    };
    let host = HeaderValue::from_str(upstream.host_header(picked, original)).map_err(refuse)?;
    for name in hop_by_hop(&head.headers) {
        request.remove_header(&name);
    }
    for name in [EXPECT, CONTENT_LENGTH, PROXY_AUTHORIZATION, HeaderName::from_static("http2-settings")] {
        request.remove_header(&name);
    }
    request.insert_header(HOST, host).map_err(refuse)?;
    // HTTP/2 upstreams would take the authority of the target instead of `Host`.
    if head.uri.authority().is_some() {
        request.set_uri(origin_form(&head.uri)?);
    }
    if length > 0 || [Method::POST, Method::PUT, Method::PATCH].contains(&head.method) {
        request.insert_header(CONTENT_LENGTH, length).map_err(refuse)?;
    }
    if upstream.protocol() != Protocol::Http1 && accepts_trailers(&head.headers) {
        request.insert_header(TE, "trailers").map_err(refuse)?;
    }
    // Written for all attempts before; the later ones have less.
    if let (Some(name), Some(left)) = (upstream.remaining_header(), left)
        && head.headers.contains_key(name)
    {
        request.insert_header(name.clone(), left.as_millis().to_string()).map_err(refuse)?;
    }
    request.set_version(Version::HTTP_11);
    Ok(request)
}

/// Names scheme and host as HTTP/2 does: in pseudo-fields, instead of `Host` (RFC 9113 section 8.3.1). Pingora's
/// client adds an authority itself but leaves `Host` in, which nginx refuses as a duplicate, and calls all `https`.
pub(in crate::upstream) fn name_as_http2(request: &mut RequestHeader, tls: bool) -> Result<(), CallError> {
    let Some(host) = request.remove_header(&HOST) else { return Ok(()) };
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let uri = Uri::builder()
        .scheme(if tls { "https" } else { "http" })
        .authority(host.as_bytes())
        .path_and_query(target)
        .build();
    request.set_uri(uri.map_err(refuse)?);
    Ok(())
}

/// The final head that was read, without hop-by-hop fields.
pub(super) fn response(session: &HttpSession, most: Most) -> Result<ResponseHeader, Failure> {
    let head = session.response_header().ok_or_else(|| CallError::Protocol("no response head".into()))?;
    if head.headers.len() > most.fields || length(head) > most.bytes {
        return Err(CallError::TooLarge.into());
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if !codings.next().is_none_or(chunked) || codings.next().is_some() {
        // Without the field nobody would know of the coding.
        return Err(CallError::Protocol("an unknown transfer coding".into()).into());
    }
    let mut head = head.clone();
    for name in hop_by_hop(&head.headers) {
        head.remove_header(&name);
    }
    Ok(head)
}

/// The length of its names and values, in bytes.
pub(super) fn length(head: &ResponseHeader) -> usize {
    head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// What the error says of the request; that a connection was old, it can say only of one that was kept.
pub(super) fn fault(error: &pingora::Error) -> Fault {
    // Pingora has requests sent again for these too: in HTTP/1.1, which is not done here. Invalid frames may come at
    // any time.
    let otherwise = matches!(error.etype(), ErrorType::H2Downgrade | ErrorType::InvalidH2);
    match error.retry {
        // The backend says that it did not process the request (RFC 9113 sections 6.8 and 8.7).
        RetryType::Decided(true) if !otherwise => Fault::Refused,
        RetryType::ReusedOnly => Fault::Stale,
        RetryType::Decided(_) if *error.etype() == ErrorType::WriteError => Fault::Stale,
        RetryType::Decided(_) => Fault::Reset,
    }
}

/// The hop-by-hop fields that are there, those nominated by `Connection` included.
fn hop_by_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    let nominated = headers
        .get_all(CONNECTION)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        // Routing and framing are not up for nomination.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH);
    let present = |name: &HeaderName| headers.contains_key(name);
    HOP_BY_HOP.into_iter().chain(nominated).filter(present).collect()
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    let tokens =
        headers.get_all(TE).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.into_iter().any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn origin_form(uri: &Uri) -> Result<Uri, CallError> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    target.parse().map_err(refuse)
}

fn refuse(error: impl std::fmt::Display) -> CallError {
    CallError::Request(error.to_string().into())
}
