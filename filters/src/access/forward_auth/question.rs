//! What the service is asked.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::{Authority, PathAndQuery};
use pingora_http::RequestHeader;
use sha2::{Digest, Sha256};

use super::options::About;
use crate::context::Context;
use crate::outcome::FilterError;

/// One question.
pub(super) struct Question {
    pub(super) head: RequestHeader,
    pub(super) body: Bytes,
}

impl Question {
    /// What it is remembered by: all that is sent, so that only the same question has the same answer.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // Parts have any length, so each one's keeps it apart from the next.
            hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(bytes);
        };
        part(self.head.method.as_str().as_bytes());
        part(self.head.uri.path_and_query().map_or("/", PathAndQuery::as_str).as_bytes());
        for (name, value) in &self.head.headers {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
        part(&self.body);
        hasher.finalize().into()
    }
}

/// Copies these fields, every line of each.
pub(super) fn copy(
    names: &[HeaderName],
    request: &RequestHeader,
    question: &mut RequestHeader,
) -> Result<(), FilterError> {
    for name in names {
        for value in request.headers.get_all(name) {
            question.append_header(name.clone(), value.clone())?;
        }
    }
    Ok(())
}

/// Says what the request is about.
pub(super) fn write_about(
    about: &[About],
    request: &RequestHeader,
    ctx: &Context,
    question: &mut RequestHeader,
) -> Result<(), FilterError> {
    for part in about {
        match part {
            About::Method => question.insert_header("x-forwarded-method", request.method.as_str())?,
            About::Proto => question.insert_header("x-forwarded-proto", ctx.scheme.as_str())?,
            // What it asks of one version it does not ask of another.
            About::Uri => question.insert_header("x-forwarded-uri", ctx.whole_target(request))?,
            About::For => question.insert_header("x-forwarded-for", ctx.client.address.to_string())?,
            About::Host => {
                if let Some(host) = host(request, ctx) {
                    question.insert_header("x-forwarded-host", &*host)?;
                }
            }
        }
    }
    Ok(())
}

/// The host asked for, with its port if the client wrote one.
fn host<'a>(request: &RequestHeader, ctx: &'a Context) -> Option<Cow<'a, str>> {
    let host = ctx.host.as_deref()?;
    let authority = request.uri.authority().map(Authority::as_str);
    let authority = authority.or_else(|| request.headers.get(header::HOST)?.to_str().ok());
    // In brackets, what follows a colon is a part of an address.
    let port = authority.and_then(|authority| authority.rsplit_once(':')).map(|(_, port)| port);
    let port = port.filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    Some(port.map_or(host.into(), |port| format!("{host}:{port}").into()))
}

/// Fields that frame a message or belong to one connection (RFC 9110 s7.6.1), and those that say what the
/// question is about.
pub(super) fn is_ours(field: &HeaderName) -> bool {
    const HOPS: [&str; 7] =
        ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];
    let name = field.as_str();
    let frames = [header::HOST, header::CONTENT_LENGTH, header::EXPECT].contains(field);
    frames || HOPS.contains(&name) || name.starts_with("x-forwarded-")
}
