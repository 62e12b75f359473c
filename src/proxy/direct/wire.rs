//! Heads of HTTP/1.1 between bytes and what filters see.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use httparse::{Header, ParserConfig, Status};
use pingora::http::{RequestHeader, ResponseHeader, header_value_from_raw};

use crate::door::Chunks;

/// Most fields of a head; those with more are Pingora's, which has the same limit.
const MAX_FIELDS: usize = 256;
/// Bytes of an answer's head.
const MAX_HEAD: usize = 1 << 20;

/// Reads a request that the door let in; `None` if it cannot be told as filters want it.
pub(super) fn request(head: &Bytes) -> Option<RequestHeader> {
    let mut room = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    if !parsed.parse_with_uninit_headers(head, &mut room).ok()?.is_complete() {
        return None;
    }
    let mut request =
        RequestHeader::build(parsed.method?, parsed.path?.as_bytes(), Some(parsed.headers.len())).ok()?;
    request.set_version(Version::HTTP_11);
    for field in parsed.headers.iter() {
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value)).ok()?;
        request.append_header(head.slice_ref(field.name.as_bytes()), value).ok()?;
    }
    Some(request)
}

/// An upstream's answer: its head, and how what follows is to be read.
pub(super) struct Answer {
    pub(super) head: Box<ResponseHeader>,
    pub(super) body: Framing,
    /// Its connection takes another request when this one is over.
    pub(super) reusable: bool,
    /// What came with the head.
    pub(super) rest: Bytes,
}

/// How a body ends.
pub(super) enum Framing {
    /// There is none.
    None,
    /// After so many more bytes.
    Length(u64),
    /// With its last chunk.
    Chunked(Chunks),
    /// With its connection.
    Close,
}

/// Reads the head that these bytes begin with; `None` while it is not whole.
///
/// # Errors
/// What is wrong with it.
pub(super) fn answer(bytes: &mut Vec<u8>, method: &Method) -> Result<Option<Answer>, &'static str> {
    let mut room = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    // What is refused from clients is read from origins, as Pingora does, and sent on as it should be.
    let mut parser = ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true);
    parser.allow_obsolete_multiline_headers_in_responses(true);
    let status = parser.parse_response_with_uninit_headers(&mut parsed, bytes, &mut room);
    let length = match status.map_err(|_| "the upstream's answer is not HTTP")? {
        Status::Complete(length) => length,
        Status::Partial if bytes.len() < MAX_HEAD => return Ok(None),
        Status::Partial => return Err("the head of the upstream's answer is too long"),
    };
    let at = |part: &[u8]| part.as_ptr().addr() - bytes.as_ptr().addr();
    let fields = parsed.headers.iter().map(|field| {
        let (name, value) = (at(field.name.as_bytes()), at(field.value));
        (name..name + field.name.len(), value..value + field.value.len())
    });
    let fields: Vec<_> = fields.collect();
    let invalid = |_| "the head of the upstream's answer is not valid";
    let mut head =
        ResponseHeader::build(parsed.code.unwrap_or_default(), Some(fields.len())).map_err(invalid)?;
    let old = parsed.version != Some(1);
    head.set_version(if old { Version::HTTP_10 } else { Version::HTTP_11 });
    head.set_reason_phrase(parsed.reason).map_err(invalid)?;
    let bytes = Bytes::from(std::mem::take(bytes));
    for (name, value) in fields {
        head.append_header(bytes.slice(name), header_value_from_raw(bytes.slice(value))).map_err(invalid)?;
    }
    let (body, twice) = framing(&mut head, method);
    let reusable = !old && !twice && !matches!(body, Framing::Close) && !says_close(&head.headers);
    Ok(Some(Answer { head: Box::new(head), body, reusable, rest: bytes.slice(length..) }))
}

/// How the body of an answer ends (RFC 9112 s6.3), and whether its head says that twice: then the length is
/// dropped.
fn framing(head: &mut ResponseHeader, method: &Method) -> (Framing, bool) {
    let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
    let twice = chunked && head.remove_header(&header::CONTENT_LENGTH).is_some();
    let status = head.status;
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if bodiless {
        return (Framing::None, twice);
    }
    if chunked {
        return (Framing::Chunked(Chunks::of_origin()), twice);
    }
    let length = head.headers.get(header::CONTENT_LENGTH).map(HeaderValue::to_str);
    // One that is not a number is refused before any of the body is read.
    let length = length.map(|text| text.ok().and_then(|text| text.parse().ok()).unwrap_or_default());
    let body = match length {
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    };
    (body, twice)
}

/// Whether a message is the last one on its connection (RFC 9112 s9.3).
pub(super) fn says_close(fields: &HeaderMap) -> bool {
    let mut lines = fields.get_all(header::CONNECTION).iter();
    lines.any(|line| {
        let mut options = line.as_bytes().split(|byte| *byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Writes a request's head.
pub(super) fn write_request(request: &RequestHeader, out: &mut Vec<u8>) {
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(request.raw_path());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    request.header_to_h1_wire(out);
    out.extend_from_slice(b"\r\n");
}

/// Writes an answer's head; as the last one on its connection, if it is.
pub(super) fn write_answer(answer: &ResponseHeader, last: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(answer.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(answer.get_reason_phrase().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    answer.header_to_h1_wire(out);
    if last {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}
