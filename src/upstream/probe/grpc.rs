//! The gRPC health checking protocol: one call of `grpc.health.v1.Health/Check`
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//!
//! Both messages have a single field, so they are written and read here by hand.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, Method};
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;

use super::super::call::name_as_http2;
use super::{AGENT, Fault, Target, read_body, read_head};

const PATH: &[u8] = b"/grpc.health.v1.Health/Check";
/// Longest answer that is looked at; a right one has 7 bytes.
const MAX_ANSWER: usize = 1024;
/// Longest `grpc-message` that is shown.
const MAX_MESSAGE: usize = 100;
/// Compressed-flag and length before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// Asks whether the service serves.
pub(super) async fn check(session: &mut HttpSession, target: &Target) -> Result<Box<str>, Fault> {
    let service = target.key.check.service.as_deref().unwrap_or_default();
    session.write_request_header(head(target)?).await?;
    session.write_request_body(request(service), true).await?;
    session.finish_request_body().await?;
    let status = read_head(session).await?;
    if status != 200 {
        return Err(format!("status {status}, expected 200").into());
    }
    let answer = read_body(session, MAX_ANSWER).await?;
    let head = session.response_header().map(|head| head.headers.clone()).unwrap_or_default();
    let trailers = match session {
        HttpSession::H2(session) => session.read_trailers().await?.unwrap_or_default(),
        _ => HeaderMap::new(),
    };
    judge(&answer, &head, &trailers)
}

fn head(target: &Target) -> Result<Box<RequestHeader>, Fault> {
    let mut head = Box::new(RequestHeader::build(Method::POST, PATH, None)?);
    head.insert_header(HOST, &*target.key.host)?;
    head.insert_header(USER_AGENT, AGENT)?;
    head.insert_header(CONTENT_TYPE, "application/grpc")?;
    head.insert_header(TE, "trailers")?;
    name_as_http2(&mut head, target.is_tls())?;
    Ok(head)
}

/// `HealthCheckRequest {string service = 1}`, with its prefix.
fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    // proto3 leaves out what is empty.
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

fn put_varint(to: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        to.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

/// The status of the call may come in the trailers, or in the head when there is nothing else.
fn judge(answer: &[u8], head: &HeaderMap, trailers: &HeaderMap) -> Result<Box<str>, Fault> {
    let field =
        |name: &str| trailers.get(name).or_else(|| head.get(name)).and_then(|value| value.to_str().ok());
    match field("grpc-status") {
        Some("0") => {}
        Some(code) => {
            let message: String =
                field("grpc-message").unwrap_or_default().chars().take(MAX_MESSAGE).collect();
            return Err(format!("grpc-status {code}: {message}").trim_end_matches(": ").into());
        }
        None => return Err("no grpc-status".into()),
    }
    match serving_status(answer) {
        Some(1) => Ok("SERVING".into()),
        Some(0) => Err("UNKNOWN".into()),
        Some(2) => Err("NOT_SERVING".into()),
        Some(3) => Err("SERVICE_UNKNOWN".into()),
        _ => Err("the answer is no HealthCheckResponse".into()),
    }
}

/// `HealthCheckResponse {ServingStatus status = 1}`, with its prefix; unset is 0 in proto3.
fn serving_status(framed: &[u8]) -> Option<u8> {
    let (prefix, message) = framed.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    if prefix[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, status @ 0..=0x7f] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(answer: &[u8], head: &[(&'static str, &str)], trailers: &[(&'static str, &str)]) -> String {
        let map = |fields: &[(&'static str, &str)]| -> HeaderMap {
            fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        match judge(answer, &map(head), &map(trailers)) {
            Ok(saw) | Err(Fault::Seen(saw)) => saw.into(),
            Err(Fault::Late) => "late".to_owned(),
        }
    }

    #[test]
    fn requests_are_written_as_protobuf_says() {
        assert_eq!(&request("")[..], b"\0\0\0\0\0");
        assert_eq!(&request("users")[..], b"\0\0\0\0\x07\x0a\x05users");
        let long = request(&"s".repeat(300));
        assert_eq!(&long[..8], b"\0\0\0\x01\x2f\x0a\xac\x02", "300 is ac 02 (protobuf, varints)");
        assert_eq!(long.len(), 8 + 300);
    }

    #[test]
    fn only_serving_with_status_zero_passes() {
        let fine = [("grpc-status", "0")];
        for (answer, saw) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], "SERVING"),
            (b"\0\0\0\0\x02\x08\x02", "NOT_SERVING"),
            (b"\0\0\0\0\x02\x08\x03", "SERVICE_UNKNOWN"),
            (b"\0\0\0\0\0", "UNKNOWN"),
            (b"", "the answer is no HealthCheckResponse"),
            (b"\x01\0\0\0\x02\x08\x01", "the answer is no HealthCheckResponse"),
            (b"\0\0\0\0\x09\x08\x01", "the answer is no HealthCheckResponse"),
        ] {
            assert_eq!(said(answer, &[], &fine), saw);
        }
        let serving = b"\0\0\0\0\x02\x08\x01";
        assert_eq!(said(serving, &[], &[]), "no grpc-status");
        assert_eq!(said(serving, &[], &[("grpc-status", "14")]), "grpc-status 14");
        let alone = [("grpc-status", "5"), ("grpc-message", "unknown service")];
        assert_eq!(said(b"", &alone, &[]), "grpc-status 5: unknown service");
    }
}
