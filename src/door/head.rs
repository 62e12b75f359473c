//! Reads request heads of HTTP/1 as strictly as RFC 9112 allows, so that no server on the way reads
//! them in another way.

use memchr::memchr;
use tollhouse_filters::host::host_of;

use super::{HeadLimits, Rule};

/// A method and a version are shorter than this together, spaces included.
const BESIDE_TARGET: u64 = 64;

/// One head on its way in: knows what it has seen, so that no byte is judged twice.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// Where the first line that is not read yet begins.
    at: usize,
    /// Where the head begins, after an empty line that a client may send first (RFC 9112 s2.2).
    start: usize,
    line: Option<Line>,
    /// Where the fields begin.
    fields_at: usize,
    fields: usize,
    host: Option<(usize, usize)>,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    /// `Connection` names it.
    nominated: bool,
    /// Says something that few clients do and that changes how a request is served.
    odd: bool,
}

/// What the request line says.
#[derive(Clone, Copy, Debug)]
struct Line {
    minor: u8,
    /// Where the minor version stands in the head.
    minor_at: usize,
    /// The authority of an absolute target, as a range of the head.
    authority: Option<(usize, usize)>,
    /// Its target is a path of ASCII.
    plain: bool,
}

/// A head that is whole and valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where it begins among the bytes read.
    pub(super) start: usize,
    /// Where what follows it begins.
    pub(super) end: usize,
    /// What follows it.
    pub(super) body: Body,
    /// Where a minor version higher than ours stands; it is read as HTTP/1.1 (RFC 9110 s2.5).
    pub(super) higher_minor: Option<usize>,
    /// A request of HTTP/1.1 for a path, whose body, if it has one, has a length, and which asks neither for
    /// an upgrade nor to be told to go on.
    pub plain: bool,
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// This many bytes, maybe none; then the next request.
    Length(u64),
    /// Chunks; where they end is for who reads them.
    Chunked,
    /// Whatever an upgrade makes of it.
    Open,
}

impl Scanner {
    /// Reads on in `bytes`, which begin where they did before; `None` while the head is not whole.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(super) fn read(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<Head>, Rule> {
        while let Some(lf) = memchr(b'\n', &bytes[self.at..]) {
            let (from, to) = (self.at, self.at + lf);
            let line =
                bytes[from..to].strip_suffix(b"\r").ok_or_else(|| self.without_cr(&bytes[from..to]))?;
            self.at = to + 1;
            match (self.line, line) {
                (None, []) if self.start == 0 => self.start = self.at,
                (None, line) => {
                    self.line = Some(request_line(line, from, limits)?);
                    self.fields_at = self.at;
                }
                (Some(first), []) => return self.finish(bytes, first).map(Some),
                (Some(_), line) => self.field(line, from, limits)?,
            }
        }
        self.partial(&bytes[self.at..], limits).map(|()| None)
    }

    /// A line without CR at its end may be no line of HTTP at all.
    fn without_cr(&self, line: &[u8]) -> Rule {
        let garbage = self.line.is_none().then(|| not_a_method(line)).flatten();
        garbage.unwrap_or(Rule::BareLf)
    }

    /// Judges a line that is not whole by what is there: binary garbage may have no lines.
    fn partial(&self, rest: &[u8], limits: &HeadLimits) -> Result<(), Rule> {
        // A CR may be the begin of the line's end, and belongs to nothing before it yet.
        let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
        match self.line {
            Some(_) => self.check_size(rest.len(), limits),
            None => begins_well(rest, limits),
        }
    }

    fn field(&mut self, line: &[u8], from: usize, limits: &HeadLimits) -> Result<(), Rule> {
        self.check_size(0, limits)?;
        self.fields += 1;
        if self.fields > limits.header_count {
            return Err(Rule::TooManyFields);
        }
        if is_space(line[0]) {
            return Err(Rule::Folding);
        }
        let colon = memchr(b':', line).ok_or(Rule::FieldLine)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        match name {
            [] => return Err(Rule::FieldLine),
            [.., last] if is_space(*last) => return Err(Rule::SpaceBeforeColon),
            name if !name.iter().all(|byte| is_token(*byte)) => return Err(Rule::FieldName),
            _ => {}
        }
        if !all(&line[colon + 1..], is_field_value) {
            return Err(Rule::FieldValue);
        }
        self.note(name, value, from + line.len() - line[colon + 1..].trim_ascii_start().len())
    }

    /// Takes down the fields that say where the request goes and where it ends; `at` is where the value begins.
    fn note(&mut self, name: &[u8], value: &[u8], at: usize) -> Result<(), Rule> {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        if is(b"host") {
            let another = self.host.replace((at, at + value.len())).is_some();
            // That it is a whole host, the engine sees for all versions of HTTP.
            return if another || !all(value, is_of_host) { Err(Rule::Host) } else { Ok(()) };
        }
        if is(b"content-length") {
            let another = self.length.replace(length(value).ok_or(Rule::Length)?).is_some();
            return if another { Err(Rule::Length) } else { Ok(()) };
        }
        if is(b"transfer-encoding") {
            let another = std::mem::replace(&mut self.chunked, true);
            let chunked = value.eq_ignore_ascii_case(b"chunked");
            return if another || !chunked { Err(Rule::Coding) } else { Ok(()) };
        }
        if is(b"connection") {
            let mut options = value.split(|byte| *byte == b',');
            self.nominated |= options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
            return Ok(());
        }
        self.odd |= is(b"expect") || is(b"upgrade");
        // The one upgrade there is; others are ignored (RFC 9110 s7.8).
        self.upgrade |= is(b"upgrade") && value.eq_ignore_ascii_case(b"websocket");
        Ok(())
    }

    fn check_size(&self, more: usize, limits: &HeadLimits) -> Result<(), Rule> {
        let size = (self.at - self.fields_at + more) as u64;
        if size > limits.header_bytes { Err(Rule::FieldsTooLarge) } else { Ok(()) }
    }

    fn finish(&self, bytes: &[u8], line: Line) -> Result<Head, Rule> {
        let host = self.host.map(|(from, to)| &bytes[from..to]);
        if line.minor > 0 && host.is_none() {
            return Err(Rule::NoHost);
        }
        let authority = line.authority.map(|(from, to)| &bytes[from..to]);
        if authority.is_some_and(|authority| host.is_some_and(|host| host != authority)) {
            return Err(Rule::TargetAgainstHost);
        }
        let body = match (self.length, self.chunked) {
            (Some(_), true) => return Err(Rule::LengthAndCoding),
            (None, true) if line.minor == 0 => return Err(Rule::Coding),
            (None, true) => Body::Chunked,
            (None | Some(0), false) if self.upgrade && self.nominated && line.minor > 0 => Body::Open,
            (length, false) => Body::Length(length.unwrap_or(0)),
        };
        let higher_minor = (line.minor > 1).then_some(line.minor_at);
        let plain = line.plain && line.minor == 1 && !self.odd && body != Body::Open;
        Ok(Head { start: self.start, end: self.at, body, higher_minor, plain })
    }
}

/// Why what a connection begins with cannot be the start of a method, whatever follows.
fn not_a_method(start: &[u8]) -> Option<Rule> {
    // The type of a TLS handshake record and its major version (RFC 8446 s5.1).
    if let [0x16, rest @ ..] = start
        && rest.first().is_none_or(|major| *major == 3)
    {
        return (!rest.is_empty()).then_some(Rule::Tls);
    }
    let method = &start[..memchr(b' ', start).unwrap_or(start.len())];
    (!method.iter().all(|byte| is_token(*byte))).then_some(Rule::Method)
}

/// What is known of a request line before its end.
fn begins_well(line: &[u8], limits: &HeadLimits) -> Result<(), Rule> {
    if let Some(rule) = not_a_method(line) {
        return Err(rule);
    }
    if line.len() as u64 > limits.uri_bytes + BESIDE_TARGET { Err(Rule::TargetTooLong) } else { Ok(()) }
}

fn request_line(line: &[u8], from: usize, limits: &HeadLimits) -> Result<Line, Rule> {
    begins_well(line, limits)?;
    let mut parts = line.split(|byte| *byte == b' ');
    let parts = (parts.next(), parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = parts else { return Err(Rule::RequestLine) };
    if method.is_empty() {
        return Err(Rule::Method);
    }
    let minor = match version {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'0'..=b'9'] => minor - b'0',
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => return Err(Rule::Version),
        _ => return Err(Rule::RequestLine),
    };
    if target.len() as u64 > limits.uri_bytes {
        return Err(Rule::TargetTooLong);
    }
    if method == b"CONNECT" {
        return Err(Rule::Connect);
    }
    let authority = authority_of(target)?;
    let at = from + method.len() + 1;
    let authority = authority.map(|(from, to)| (at + from, at + to));
    let plain = target.starts_with(b"/") && target.is_ascii();
    Ok(Line { minor, minor_at: from + line.len() - 1, authority, plain })
}

/// Where the authority of a target is, if it has one; a target must have one of the forms of RFC 9112 s3.2.
fn authority_of(target: &[u8]) -> Result<Option<(usize, usize)>, Rule> {
    // A fragment is not sent (RFC 9110 s4.2.5), and who cuts it off reads another target.
    let query = memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at(query);
    // Of the characters that no URI has (RFC 3986 s2), these are read by nobody behind.
    let known = |byte| is_visible(byte) && !matches!(byte, b'#' | b'<' | b'>');
    let visible =
        all(path, |byte| known(byte) && byte != b'`') && all(query, |byte| known(byte) && byte != b'"');
    if !visible || (!target.is_ascii() && std::str::from_utf8(target).is_err()) {
        return Err(Rule::Target);
    }
    if target.first() == Some(&b'/') || target == b"*" {
        return Ok(None);
    }
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let from = scheme.ok_or(Rule::Target)?.len();
    let rest = &target[from..];
    let length = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    if is_host(&rest[..length]) { Ok(Some((from, from + length))) } else { Err(Rule::Target) }
}

/// Whether it holds for all bytes. Without an early end, so that many are looked at at once: nearly
/// always all of them are fine.
fn all(bytes: &[u8], holds: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, byte| all & holds(*byte))
}

/// Letters, digits, `-._` and what stands around addresses and before ports.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']')
}

fn is_host(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| host_of(text).is_some())
}

/// Digits and nothing else (RFC 9110 s8.6), and not more than can be counted.
fn length(value: &[u8]) -> Option<u64> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|length| *length <= i64::MAX as u64)
}

/// `tchar` of RFC 9110 s5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Neither a control character nor a space. Letters beyond ASCII are no URI's, but clients send them;
/// they are percent-encoded before anyone looks at them.
fn is_visible(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

/// `field-vchar`, space and tab (RFC 9110 s5.5).
pub(super) fn is_field_value(byte: u8) -> bool {
    (byte == b'\t') | ((byte >= b' ') & (byte != 0x7f))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let symbol = b"!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < symbol.len() {
            table[symbol[at] as usize] = true;
            at += 1;
        }
        if (byte as u8).is_ascii_alphanumeric() {
            table[byte] = true;
        }
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests;
