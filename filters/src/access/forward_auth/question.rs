//! What the service is asked.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
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
            About::Uri => {
                let uri = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
                question.insert_header("x-forwarded-uri", uri)?;
            }
            About::For => question.insert_header("x-forwarded-for", ctx.client.address.to_string())?,
            About::Host => {
                if let Some(host) = ctx.host.as_deref() {
                    question.insert_header("x-forwarded-host", host)?;
                }
            }
        }
    }
    Ok(())
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

/// Whether the request may have a body, which is then still to come. Over HTTP/2, where nobody has to say, only a
/// method without content tells that there is none.
pub(super) fn may_have_body(request: &RequestHeader) -> bool {
    let is_none = |length: &HeaderValue| length.as_bytes().trim_ascii() == b"0";
    match request.headers.get(header::CONTENT_LENGTH) {
        Some(length) => !is_none(length),
        None if request.version == http::Version::HTTP_2 => true,
        None => request.headers.contains_key(header::TRANSFER_ENCODING),
    }
}
