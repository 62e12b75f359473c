//! From a reply to what is sent: problems as `application/problem+json` (RFC 9457) or for gRPC.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use serde_json::json;
use tollhouse_filters::context::{Context, RequestId};
use tollhouse_filters::outcome::{Body, Message, Reply};
use tollhouse_filters::problem::{Problem, grpc_status};

/// A reply, ready to be sent.
#[derive(Debug)]
pub struct Rendered {
    /// The head, framing fields included once `frame` ran.
    pub head: ResponseHeader,
    /// The body.
    pub body: Body,
}

/// Turns a reply into a message, as the client can read it.
#[must_use]
pub fn render(reply: Reply, request: &RequestHeader, ctx: &Context) -> Rendered {
    match reply {
        Reply::Message(message) => {
            let Message { head, body } = *message;
            Rendered { head, body }
        }
        Reply::Problem(problem) if speaks_grpc(&request.headers) => grpc(&problem),
        Reply::Problem(problem) => problem_reply(&problem, &ctx.request_id),
    }
}

/// Whether the content of these fields is gRPC's.
#[must_use]
pub fn speaks_grpc(fields: &HeaderMap) -> bool {
    let content_type = fields.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.and_then(|text| text.strip_prefix(b"application/grpc")).is_some_and(|rest| {
        // `application/grpc-web` is another protocol.
        matches!(rest.first(), None | Some(b'+' | b';'))
    })
}

/// A problem as JSON, for who speaks anything but gRPC.
#[must_use]
pub fn problem_reply(problem: &Problem, request_id: &RequestId) -> Rendered {
    let mut document = json!({
        "type": problem.kind.urn(),
        "title": problem.kind.title,
        "status": problem.kind.status,
        "request_id": request_id.to_string(),
    });
    if let Some(detail) = &problem.detail {
        document["detail"] = json!(detail);
    }
    for (name, value) in problem.members.iter().flat_map(|members| members.iter()) {
        document[name] = value.clone();
    }
    let mut head = head_of(problem, problem.kind.status);
    put(&mut head, header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    put(&mut head, header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Rendered { head, body: Body::Bytes(format!("{document}\n").into()) }
}

/// A trailers-only answer: status and message are fields of the one head.
fn grpc(problem: &Problem) -> Rendered {
    let mut head = head_of(problem, 200);
    put(&mut head, header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    for (name, value) in &grpc_trailers(problem) {
        put(&mut head, name.clone(), value.clone());
    }
    Rendered { head, body: Body::Bytes(Bytes::new()) }
}

/// What ends a call (gRPC over HTTP/2, Responses): its status and a message.
#[must_use]
pub fn grpc_trailers(problem: &Problem) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let status = problem.grpc_status.unwrap_or_else(|| grpc_status(problem.kind.status));
    trailers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(status)));
    let message = problem.detail.as_deref().unwrap_or(problem.kind.title);
    if let Ok(message) = HeaderValue::from_str(&grpc_message(message)) {
        trailers.insert(HeaderName::from_static("grpc-message"), message);
    }
    trailers
}

/// Percent-encodes what is not printable ASCII, and `%` itself (gRPC over HTTP/2, Responses).
fn grpc_message(text: &str) -> String {
    let plain = |byte: u8| (0x20..=0x7e).contains(&byte) && byte != b'%';
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn head_of(problem: &Problem, status: u16) -> ResponseHeader {
    let mut head = ResponseHeader::build(status, Some(8)).expect("registered statuses are valid");
    for (name, value) in &problem.headers {
        let _ = head.append_header(name.clone(), value.clone());
    }
    if let Some(seconds) = problem.retry_after {
        put(&mut head, header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    head
}

fn put(head: &mut ResponseHeader, name: HeaderName, value: HeaderValue) {
    let _ = head.insert_header(name, value);
}

impl Rendered {
    /// Says how long a body held in memory is.
    pub(super) fn declare_length(&mut self) {
        if let Body::Bytes(bytes) = &self.body {
            let length = bytes.len();
            put(&mut self.head, header::CONTENT_LENGTH, HeaderValue::from(length));
        }
    }

    /// Shows a body held in memory to filters.
    pub(super) fn filter_body<E>(
        &mut self,
        filter: impl FnOnce(&mut Option<Bytes>) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Body::Bytes(bytes) = &mut self.body {
            let mut piece = Some(std::mem::take(bytes));
            filter(&mut piece)?;
            *bytes = piece.unwrap_or_default();
        }
        Ok(())
    }

    /// Writes the framing fields; an answer to HEAD says what GET would have said.
    pub(super) fn frame(&mut self, method: &Method) {
        self.head.remove_header(&header::TRANSFER_ENCODING);
        let bodiless = matches!(self.head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if self.head.status == StatusCode::RESET_CONTENT {
            // RFC 9110 s15.3.6: it says that there is no content.
            self.body = Body::Bytes(Bytes::new());
        }
        match &mut self.body {
            _ if bodiless => {
                self.head.remove_header(&header::CONTENT_LENGTH);
                self.body = Body::Bytes(Bytes::new());
            }
            Body::Bytes(_) => {
                self.declare_length();
                if method == Method::HEAD {
                    self.body = Body::Bytes(Bytes::new());
                }
            }
            Body::Stream(_) if method == Method::HEAD => self.body = Body::Bytes(Bytes::new()),
            Body::Stream(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(grpc_message("100% ü\n"), "100%25 %C3%BC%0A");
    }

    #[test]
    fn grpc_web_is_not_grpc() {
        for (content_type, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            let mut request = RequestHeader::build("POST", b"/", None).expect("valid");
            request.insert_header("content-type", content_type).expect("valid");
            assert_eq!(speaks_grpc(&request.headers), grpc, "{content_type}");
        }
    }
}
