//! Heads of HTTP/1.1 between bytes and what filters see.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use httparse::{Header, ParserConfig, Status};
use pingora::http::{RequestHeader, ResponseHeader, header_value_from_raw};
use pingora::protocols::http::date::get_cached_date;

use crate::door::Chunks;
use crate::engine::write_line;
use crate::proxy::response::{content_length, is_events};

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
    pub(super) head: AnswerHead,
    pub(super) body: Framing,
    /// Its connection takes another request when this one is over.
    pub(super) reusable: bool,
    /// What came with the head.
    pub(super) rest: Bytes,
}

/// How the head of an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As lines, where nothing is out of the ordinary.
    Lines,
    /// As filters see it, with how its names are spelt.
    Spelt,
    /// As filters see it, for who knows names in lower case only.
    Plain,
}

/// The head of an answer.
pub(super) enum AnswerHead {
    /// As filters see it.
    Whole(Box<ResponseHeader>),
    /// As it is sent on, where no filter sees it: a final one, without its end. In chunks, if it says so.
    Lines { status: u16, lines: Vec<u8>, chunked: bool },
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

impl Framing {
    /// Whether more than so many bytes may be to come.
    pub(super) const fn may_exceed(&self, bytes: u64) -> bool {
        match self {
            Self::None => false,
            Self::Length(left) => *left > bytes,
            Self::Chunked(_) | Self::Close => true,
        }
    }
}

/// Reads the head that these bytes begin with; `None` while it is not whole.
///
/// # Errors
/// What is wrong with it.
pub(super) fn answer(bytes: &[u8], method: &Method, form: Form) -> Result<Option<Answer>, &'static str> {
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
    if form == Form::Lines
        && *method != Method::HEAD
        && let Some((head, body, reusable)) = lines(&parsed)
    {
        let rest = Bytes::copy_from_slice(&bytes[length..]);
        return Ok(Some(Answer { head, body, reusable, rest }));
    }
    let at = |part: &[u8]| part.as_ptr().addr() - bytes.as_ptr().addr();
    let fields = parsed.headers.iter().map(|field| {
        let (name, value) = (at(field.name.as_bytes()), at(field.value));
        (name..name + field.name.len(), value..value + field.value.len())
    });
    let fields: Vec<_> = fields.collect();
    let invalid = |_| "the head of the upstream's answer is not valid";
    let (code, room) = (parsed.code.unwrap_or_default(), Some(fields.len()));
    let head = if form == Form::Plain {
        ResponseHeader::build_no_case(code, room)
    } else {
        ResponseHeader::build(code, room)
    };
    let mut head = head.map_err(invalid)?;
    let old = parsed.version != Some(1);
    head.set_version(if old { Version::HTTP_10 } else { Version::HTTP_11 });
    head.set_reason_phrase(parsed.reason).map_err(invalid)?;
    let bytes = Bytes::copy_from_slice(bytes);
    for (name, value) in fields {
        head.append_header(bytes.slice(name), header_value_from_raw(bytes.slice(value))).map_err(invalid)?;
    }
    let (body, twice) = framing(&mut head, method);
    let reusable = !old && !twice && !matches!(body, Framing::Close) && !says_close(&head.headers);
    Ok(Some(Answer { head: AnswerHead::Whole(Box::new(head)), body, reusable, rest: bytes.slice(length..) }))
}

/// Takes the lines of a final answer that says nothing out of the ordinary, without those that concern one
/// connection only.
fn lines(answer: &httparse::Response<'_, '_>) -> Option<(AnswerHead, Framing, bool)> {
    let status = answer.code.filter(|status| *status >= 200 && !matches!(status, 204 | 205 | 304))?;
    if answer.version != Some(1) {
        return None;
    }
    let mut lines = Vec::with_capacity(512);
    let reason = answer.reason.unwrap_or_default();
    let written = write!(lines, "HTTP/1.1 {status} {reason}\r\n");
    debug_assert!(written.is_ok(), "a vector takes all");
    let (mut length, mut chunked, mut reusable, mut dated) = (None, false, true, false);
    for field in answer.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            4 if is("date") => dated = true,
            7 if is("upgrade") => continue,
            7 if is("trailer") => return None,
            10 if is("keep-alive") => continue,
            10 if is("connection") && field.value.eq_ignore_ascii_case(b"keep-alive") => continue,
            10 if is("connection") && field.value.eq_ignore_ascii_case(b"close") => {
                reusable = false;
                continue;
            }
            10 if is("connection") => return None,
            12 if is("content-type") && is_events(field.value) => return None,
            14 if is("content-length") => {
                let once = length.replace(content_length(field.value)?).is_none();
                once.then_some(())?;
            }
            16 if is("proxy-connection") => continue,
            17 if is("transfer-encoding") => {
                let once = !std::mem::replace(&mut chunked, true);
                (once && field.value.eq_ignore_ascii_case(b"chunked")).then_some(())?;
            }
            _ => {}
        }
        if memchr::memchr3(b'\r', b'\n', 0, field.value).is_some() {
            return None;
        }
        write_line(field.name.as_bytes(), field.value, &mut lines);
    }
    if !dated {
        write_line(b"Date", get_cached_date().as_bytes(), &mut lines);
    }
    let body = match (length, chunked) {
        (Some(0), false) => Framing::None,
        (Some(length), false) => Framing::Length(length),
        (None, true) => Framing::Chunked(Chunks::of_origin()),
        _ => return None,
    };
    Some((AnswerHead::Lines { status, lines, chunked }, body, reusable))
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
    let body = match head.headers.get(header::CONTENT_LENGTH).map(|length| content_length(length.as_bytes()))
    {
        Some(Some(0)) => Framing::None,
        Some(Some(length)) => Framing::Length(length),
        // What is no number is refused before any of the body is read; if it were not, the connection would end.
        Some(None) | None => Framing::Close,
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

/// Writes an answer's head; as the last one on its connection, if it is. What it said of another connection
/// is not for this one (RFC 9110 s7.6.1).
pub(super) fn write_answer(answer: &mut ResponseHeader, last: bool, out: &mut Vec<u8>) {
    answer.remove_header(&header::CONNECTION);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(answer.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(answer.get_reason_phrase().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    answer.header_to_h1_wire(out);
    end_answer(last, out);
}

/// Ends an answer's head.
pub(super) fn end_answer(last: bool, out: &mut Vec<u8>) {
    if last {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}
