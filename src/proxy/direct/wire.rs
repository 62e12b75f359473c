//! Heads of HTTP/1.1 between bytes and what filters see.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use httparse::{Header, ParserConfig, Status};
use pingora::http::{RequestHeader, ResponseHeader, header_value_from_raw};
use pingora::protocols::http::date::get_cached_date;
use tollhouse_filters::events;

use super::client::Begin;
use crate::door::Chunks;
use crate::engine::write_line;
use crate::proxy::response::content_length;

/// Most fields of a head; those with more are Pingora's, which has the same limit.
const MAX_FIELDS: usize = 256;
/// Bytes of an answer's head.
const MAX_HEAD: usize = 1 << 20;
/// Bytes that an answer's head may get here: `Date`, `Connection` and its end.
const BESIDE_FIELDS: usize = 64;
/// What the last answer on a connection says (RFC 9112 s9.6).
const CLOSE: &[u8] = b"Connection: close\r\n";

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
    /// The same, unless it names another URL (`Location`, `Content-Location`).
    Nameless,
    /// As filters see it, with how its names are spelt.
    Spelt,
    /// As filters see it, for who knows names in lower case only.
    Plain,
}

/// The head of an answer.
pub(super) enum AnswerHead {
    /// As filters see it.
    Whole(Box<ResponseHeader>),
    /// As it is sent on, where no filter sees it: a final one.
    Lines(Lines),
}

/// The lines of an answer's head, and behind them all of its content, if that came with them.
pub(super) struct Lines {
    pub(super) status: u16,
    bytes: Vec<u8>,
    /// Where the fields end.
    fields: usize,
    /// How much content there is.
    content: usize,
    /// Content is to follow in chunks.
    chunked: bool,
}

impl Lines {
    /// What is sent; as the last answer on its connection, if it is.
    pub(super) fn begin(self, last: bool) -> Begin {
        let Self { mut bytes, fields, content, chunked, .. } = self;
        if last {
            bytes.splice(fields..fields, CLOSE.iter().copied());
        }
        Begin { head: bytes, content: content as u64, chunked }
    }
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
    // What is refused from clients is read from origins, as Pingora does, and sent on as it should be.
    let mut parser = ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true);
    match read_answer(&parser, bytes, method, form) {
        Err(Unread::Syntax) => {
            // A field may go on in the next line; hardly any does.
            parser.allow_obsolete_multiline_headers_in_responses(true);
            let form = if form == Form::Plain { form } else { Form::Spelt };
            read_answer(&parser, bytes, method, form)
        }
        read => read,
    }
    .map_err(Unread::reason)
}

/// Why a head is not read.
enum Unread {
    /// It cannot be parsed so.
    Syntax,
    /// What it says is wrong.
    Invalid(&'static str),
}

impl Unread {
    const fn reason(self) -> &'static str {
        match self {
            Self::Syntax => "the upstream's answer is not HTTP",
            Self::Invalid(reason) => reason,
        }
    }
}

fn read_answer(
    parser: &ParserConfig,
    bytes: &[u8],
    method: &Method,
    form: Form,
) -> Result<Option<Answer>, Unread> {
    let mut room = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let status = parser.parse_response_with_uninit_headers(&mut parsed, bytes, &mut room);
    let length = match status.map_err(|_| Unread::Syntax)? {
        Status::Complete(length) => length,
        Status::Partial if bytes.len() < MAX_HEAD => return Ok(None),
        Status::Partial => return Err(Unread::Invalid("the head of the upstream's answer is too long")),
    };
    if matches!(form, Form::Lines | Form::Nameless)
        && *method != Method::HEAD
        && let Some(answer) = as_lines(&parsed, bytes, length, form)
    {
        return Ok(Some(answer));
    }
    let at = |part: &[u8]| part.as_ptr().addr() - bytes.as_ptr().addr();
    let fields = parsed.headers.iter().map(|field| {
        let (name, value) = (at(field.name.as_bytes()), at(field.value));
        (name..name + field.name.len(), value..value + field.value.len())
    });
    let fields: Vec<_> = fields.collect();
    let invalid = |_| Unread::Invalid("the head of the upstream's answer is not valid");
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
/// connection only. No field in the head, which is so long and was read for them, goes on in the next line.
fn as_lines(answer: &httparse::Response<'_, '_>, bytes: &[u8], length: usize, form: Form) -> Option<Answer> {
    let (head, rest) = bytes.split_at(length);
    let status = answer.code.filter(|status| *status >= 200 && !matches!(status, 204 | 205 | 304))?;
    if answer.version != Some(1) {
        return None;
    }
    let mut lines = Vec::with_capacity(bytes.len() + BESIDE_FIELDS);
    write_status_line(status, answer.reason, &mut lines)?;
    let mut copied = Copied { head, run: 0..0 };
    let (mut length, mut chunked, mut reusable, mut dated) = (None, false, true, false);
    for field in answer.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if form == Form::Nameless && (is("location") || is("content-location")) {
            return None;
        }
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
            12 if is("content-type") && events::are_of_type(field.value) => return None,
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
        copied.add(field, &mut lines);
    }
    copied.flush(&mut lines);
    if !dated {
        write_line(b"Date", get_cached_date().as_bytes(), &mut lines);
    }
    let fields = lines.len();
    lines.extend_from_slice(b"\r\n");
    // Most content that is short comes with its head.
    let whole = !rest.is_empty() && length == Some(rest.len() as u64) && !chunked;
    let content = if whole { rest } else { &[] };
    lines.extend_from_slice(content);
    let (body, rest) = match (length, chunked) {
        (_, false) if whole => (Framing::None, Bytes::new()),
        (Some(0), false) => (Framing::None, Bytes::copy_from_slice(rest)),
        (Some(length), false) => (Framing::Length(length), Bytes::copy_from_slice(rest)),
        (None, true) => (Framing::Chunked(Chunks::of_origin()), Bytes::copy_from_slice(rest)),
        _ => return None,
    };
    let head = Lines { status, bytes: lines, fields, content: content.len(), chunked };
    Some(Answer { head: AnswerHead::Lines(head), body, reusable, rest })
}

/// Writes the first line of an answer; none if it has no such status.
fn write_status_line(status: u16, reason: Option<&str>, out: &mut Vec<u8>) -> Option<()> {
    let code = StatusCode::from_u16(status).ok()?;
    for part in ["HTTP/1.1 ", code.as_str(), " ", reason.unwrap_or_default(), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    Some(())
}

/// Field lines on their way from a head to another: those that follow each other and are written as we do go at
/// once.
struct Copied<'a> {
    head: &'a [u8],
    /// Those that wait.
    run: Range<usize>,
}

impl Copied<'_> {
    /// Adds the line of a field of this head.
    fn add(&mut self, field: &Header<'_>, out: &mut Vec<u8>) {
        let at = |part: &[u8]| part.as_ptr().addr() - self.head.as_ptr().addr();
        let (name, value) = (at(field.name.as_bytes()), at(field.value));
        let (name_end, value_end) = (name + field.name.len(), value + field.value.len());
        let end = value_end + 2;
        let plain =
            self.head.get(name_end..value) == Some(b": ") && self.head.get(value_end..end) == Some(b"\r\n");
        if plain && self.run.end == name {
            self.run.end = end;
            return;
        }
        self.flush(out);
        if plain {
            self.run = name..end;
        } else {
            write_line(field.name.as_bytes(), field.value, out);
        }
    }

    /// Writes those that wait.
    fn flush(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head[std::mem::take(&mut self.run)]);
    }
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
    if last {
        out.extend_from_slice(CLOSE);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The head that is sent on, each field for itself; as it is read where any field may go on in the next line.
    fn one_by_one(bytes: &[u8]) -> Vec<u8> {
        let mut room = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut room);
        let mut parser = ParserConfig::default();
        parser.allow_spaces_after_header_name_in_responses(true);
        parser.allow_obsolete_multiline_headers_in_responses(true);
        assert!(parser.parse_response(&mut parsed, bytes).expect("valid").is_complete());
        let mut out =
            format!("HTTP/1.1 {} {}\r\n", parsed.code.unwrap(), parsed.reason.unwrap()).into_bytes();
        let dropped = ["connection", "keep-alive", "proxy-connection", "upgrade"];
        for field in parsed.headers.iter().filter(|field| !dropped.contains(&&*field.name.to_lowercase())) {
            write_line(field.name.as_bytes(), field.value, &mut out);
        }
        out
    }

    fn fields() -> impl Strategy<Value = Vec<String>> {
        let name = prop::sample::select(vec!["Server", "x-a", "keep-alive", "Upgrade", "Proxy-Connection"]);
        let colon = prop::sample::select(vec![":", ": ", ": ", ": ", ":  ", " : ", ":\t"]);
        let end = prop::sample::select(vec!["\r\n", "\r\n", " \r\n", "\n"]);
        let field = (name, colon, "[ -~é]{0,8}", end);
        prop::collection::vec(
            field.prop_map(|(name, colon, value, end)| format!("{name}{colon}{value}{end}")),
            0..8,
        )
    }

    proptest! {
        #[test]
        fn lines_that_are_copied_together_are_as_they_are_one_by_one(
            before in fields(),
            after in fields(),
            status in 200u16..204,
            last: bool,
            came in prop::sample::select(vec!["", "hell", "hello", "hello more"]),
        ) {
            let whole = came == "hello";
            let (before, after) = (before.concat(), after.concat());
            let text = format!("HTTP/1.1 {status} Fine\r\n{before}Date: now\r\nContent-Length: 5\r\n{after}\r\n{came}");
            let answer = answer(text.as_bytes(), &Method::GET, Form::Lines).expect("valid").expect("whole");
            let AnswerHead::Lines(lines) = answer.head else { panic!("nothing is out of the ordinary") };
            let fields = one_by_one(text.as_bytes());
            let close: &[u8] = if last { b"Connection: close\r\n" } else { b"" };
            let expected = [&fields[..], close, b"\r\n", if whole { b"hello" } else { b"" }].concat();
            let begin = lines.begin(last);
            prop_assert_eq!(String::from_utf8_lossy(&begin.head), String::from_utf8_lossy(&expected));
            prop_assert_eq!(begin.content, if whole { 5 } else { 0 });
            prop_assert_eq!(&answer.rest[..], if whole { "" } else { came }.as_bytes());
        }
    }

    #[test]
    fn a_field_that_goes_on_in_the_next_line_is_one_line_to_clients() {
        let text = b"HTTP/1.1 200 OK\r\nx-a: 1\r\n  2\r\nContent-Length: 0\r\n\r\n";
        let answer = answer(text, &Method::GET, Form::Lines).expect("valid").expect("whole");
        let AnswerHead::Whole(head) = answer.head else { panic!("it is read as filters see it") };
        assert_eq!(head.headers["x-a"], "1 2");
        for cut in 0..text.len() {
            assert!(
                super::answer(&text[..cut], &Method::GET, Form::Lines).expect("valid").is_none(),
                "{cut}"
            );
        }
        assert!(super::answer(b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", &Method::GET, Form::Lines).is_err());
    }

    #[test]
    fn an_answer_that_names_another_url_is_read_whole_where_that_matters() {
        for (field, form, whole) in [
            ("Location: /b", Form::Lines, false),
            ("Location: /b", Form::Nameless, true),
            ("content-location: /b", Form::Nameless, true),
            ("X-Location: /b", Form::Nameless, false),
        ] {
            let text = format!("HTTP/1.1 201 Created\r\n{field}\r\nContent-Length: 0\r\n\r\n");
            let answer = answer(text.as_bytes(), &Method::POST, form).expect("valid").expect("whole");
            assert_eq!(matches!(answer.head, AnswerHead::Whole(_)), whole, "{field} {form:?}");
        }
    }
}
