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
}

/// What the request line says.
#[derive(Clone, Copy, Debug)]
struct Line {
    minor: u8,
    /// Where the minor version stands in the head.
    minor_at: usize,
    /// The authority of an absolute target, as a range of the head.
    authority: Option<(usize, usize)>,
}

/// A head that is whole and valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Where it begins among the bytes read.
    pub(super) start: usize,
    /// Where what follows it begins.
    pub(super) end: usize,
    /// What follows it.
    pub(super) body: Body,
    /// Where a minor version higher than ours stands; it is read as HTTP/1.1 (RFC 9110 s2.5).
    pub(super) higher_minor: Option<usize>,
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
        if self.line.is_some() {
            return self.check_size(rest.len(), limits);
        }
        if let Some(rule) = not_a_method(rest) {
            return Err(rule);
        }
        if rest.len() as u64 > limits.uri_bytes + BESIDE_TARGET { Err(Rule::TargetTooLong) } else { Ok(()) }
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
            (None | Some(0), false) if self.upgrade && line.minor > 0 => Body::Open,
            (length, false) => Body::Length(length.unwrap_or(0)),
        };
        let higher_minor = (line.minor > 1).then_some(line.minor_at);
        Ok(Head { start: self.start, end: self.at, body, higher_minor })
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
    let method = method.strip_suffix(b"\r").unwrap_or(method);
    (!method.iter().all(|byte| is_token(*byte))).then_some(Rule::Method)
}

fn request_line(line: &[u8], from: usize, limits: &HeadLimits) -> Result<Line, Rule> {
    if let Some(rule) = not_a_method(line) {
        return Err(rule);
    }
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
    Ok(Line { minor, minor_at: from + line.len() - 1, authority })
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
mod tests {
    use std::time::Duration;

    use pingora::protocols::http::ServerSession;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        header_bytes: 200,
        header_count: 4,
        uri_bytes: 100,
        header_timeout: Duration::ZERO,
        idle_timeout: Duration::ZERO,
        body_timeout: Duration::ZERO,
        min_rate: None,
    };

    fn scan(bytes: impl AsRef<[u8]>) -> Result<Option<Head>, Rule> {
        Scanner::default().read(bytes.as_ref(), &LIMITS)
    }

    fn body(fields: &str) -> Result<Body, Rule> {
        scan(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|head| head.unwrap().body)
    }

    #[test]
    fn each_line_of_a_head_has_one_form() {
        for (head, rule) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Rule::BareLf),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Rule::BareLf),
            ("GET / HTTP/1.1\rHost: a\r\n\r\n", Rule::RequestLine),
            ("\r\n\r\nGET / HTTP/1.1\r\n", Rule::RequestLine),
            ("GET  / HTTP/1.1\r\n", Rule::RequestLine),
            ("GET / x HTTP/1.1\r\n", Rule::RequestLine),
            ("GET / HTTP/1.1 \r\n", Rule::RequestLine),
            ("GET /\tHTTP/1.1\r\n", Rule::RequestLine),
            ("GET /\r\n", Rule::RequestLine),
            ("GET / http/1.1\r\n", Rule::RequestLine),
            ("GET / HTTP/1.10\r\n", Rule::RequestLine),
            ("GET / HTTP/11\r\n", Rule::RequestLine),
            (" / HTTP/1.1\r\n", Rule::Method),
            (" GET / HTTP/1.1\r\n", Rule::RequestLine),
            ("G(T / HTTP/1.1\r\n", Rule::Method),
            ("GET / HTTP/0.9\r\n", Rule::Version),
            ("GET / HTTP/2.0\r\n", Rule::Version),
            ("GET / HTTP/3.0\r\n", Rule::Version),
            ("GET / HTTP/1.1\r\nHost\r\n", Rule::FieldLine),
            ("GET / HTTP/1.1\r\n: a\r\n", Rule::FieldLine),
            ("GET / HTTP/1.1\r\nHost : a\r\n", Rule::SpaceBeforeColon),
            ("GET / HTTP/1.1\r\nHost\t: a\r\n", Rule::SpaceBeforeColon),
            ("GET / HTTP/1.1\r\n Host: a\r\n", Rule::Folding),
            ("GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n", Rule::Folding),
            ("GET / HTTP/1.1\r\nHo st: a\r\n", Rule::FieldName),
            ("GET / HTTP/1.1\r\nH\u{f6}st: a\r\n", Rule::FieldName),
            ("GET / HTTP/1.1\r\nA: \0\r\n", Rule::FieldValue),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n", Rule::FieldValue),
            ("GET / HTTP/1.1\r\nA: \u{7f}\r\n", Rule::FieldValue),
        ] {
            assert_eq!(scan(head), Err(rule), "{head:?}");
        }
    }

    #[test]
    fn a_target_has_one_of_the_forms_of_rfc_9112_s3_2() {
        let ask = |target: &str, host: &str| scan(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        for target in ["/", "/a?b", "*", "http://a", "HTTP://a/b", "https://a?b", "//a", "/\u{fc}", "/a|b{}"]
        {
            assert!(ask(target, "a").is_ok_and(|head| head.is_some()), "{target}");
        }
        for target in
            ["a", "a:80", "ftp://a/", "http:/a", "http:///", "http://u@a/", "/a#b", "/a\u{7f}", "/\0"]
        {
            assert_eq!(ask(target, "a"), Err(Rule::Target), "{target}");
        }
        assert_eq!(ask("http://a/", "b"), Err(Rule::TargetAgainstHost));
        assert_eq!(ask("http://a/", "a:80"), Err(Rule::TargetAgainstHost));
    }

    #[test]
    fn a_request_of_1_1_has_exactly_one_valid_host_as_rfc_9112_s3_2_says() {
        let ask = |version: &str, fields: &str| scan(format!("GET / HTTP/{version}\r\n{fields}\r\n")).err();
        assert_eq!(ask("1.1", ""), Some(Rule::NoHost));
        assert_eq!(ask("1.0", ""), None);
        assert_eq!(ask("1.1", "Host:\r\n"), None, "a target without authority has an empty one");
        for fields in ["Host: a\r\nhost: a\r\n", "Host: a, b\r\n", "Host: u@a\r\n", "Host: a/b\r\n"] {
            assert_eq!((ask("1.1", fields), ask("1.0", fields)), (Some(Rule::Host), Some(Rule::Host)));
        }
    }

    #[test]
    fn the_end_of_a_request_is_said_once_as_rfc_9112_s6_says() {
        assert_eq!(body(""), Ok(Body::Length(0)));
        assert_eq!(body("Content-Length: 007\r\n"), Ok(Body::Length(7)));
        assert_eq!(body("transfer-encoding:Chunked\r\n"), Ok(Body::Chunked));
        for value in
            ["", "+5", "-5", "5 5", "5, 5", "0x5", "5.0", "99999999999999999999", "9223372036854775808"]
        {
            assert_eq!(body(&format!("Content-Length: {value}\r\n")), Err(Rule::Length), "{value}");
        }
        assert_eq!(body("Content-Length: 5\r\nContent-Length: 5\r\n"), Err(Rule::Length));
        for value in ["", "identity", "gzip, chunked", "chunked, chunked", "xchunked", "chunked;a=b"] {
            assert_eq!(body(&format!("Transfer-Encoding: {value}\r\n")), Err(Rule::Coding), "{value}");
        }
        let coding = "Transfer-Encoding: chunked\r\n";
        assert_eq!(body(&format!("{coding}{coding}")), Err(Rule::Coding));
        assert_eq!(body(&format!("{coding}Content-Length: 5\r\n")), Err(Rule::LengthAndCoding));
        let old = format!("POST / HTTP/1.0\r\n{coding}\r\n");
        assert_eq!(scan(old), Err(Rule::Coding), "RFC 9112 s6.1: faulty framing");
    }

    #[test]
    fn only_an_upgrade_without_a_body_leaves_the_end_open() {
        assert_eq!(body("Upgrade: websocket\r\n"), Ok(Body::Open));
        assert_eq!(body("Upgrade: websocket\r\nContent-Length: 0\r\n"), Ok(Body::Open));
        assert_eq!(body("Upgrade: h2c\r\n"), Ok(Body::Length(0)), "RFC 9110 s7.8: it may be ignored");
        assert_eq!(body("Upgrade: websocket\r\nContent-Length: 5\r\n"), Ok(Body::Length(5)));
        assert_eq!(
            scan("GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n").unwrap().unwrap().body,
            Body::Length(0)
        );
    }

    #[test]
    fn garbage_is_known_by_its_first_bytes() {
        assert_eq!(scan([0x16]), Ok(None));
        assert_eq!(scan([0x16, 3, 1]), Err(Rule::Tls));
        assert_eq!(scan([0x16, 9]), Err(Rule::Method));
        assert_eq!(scan([0]), Err(Rule::Method));
        assert_eq!(scan("SSH-2.0-x\r\n"), Err(Rule::RequestLine));
        assert_eq!(scan([b'a'; 165]), Err(Rule::TargetTooLong));
    }

    /// A head that may have anything wrong with it.
    fn any_head() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("GET / HTTP/1.1\r\n"),
            Just("POST http://a/ HTTP/1.1\r\n"),
            Just("GET /%zz\u{fc}\" HTTP/1.0\r\n"),
            Just("OPTIONS * HTTP/1.1\r\n"),
            Just("M!X //x?y HTTP/1.3\r\n"),
        ];
        let field = prop_oneof![
            Just("Host: a\r\n"),
            Just("Host:\r\n"),
            Just("Content-Length: 5\r\n"),
            Just("Upgrade: websocket\r\n"),
            Just("Transfer-Encoding: chunked\r\n"),
            Just("Connection: upgrade\r\n"),
            Just("A: \u{e9}\t b \r\n"),
        ];
        let fields = proptest::collection::vec(field, 0..4);
        let harm =
            proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..3);
        (line, fields, harm).prop_map(|(line, fields, harm)| {
            let mut head = format!("{line}{}\r\n", fields.concat()).into_bytes();
            for (at, byte, replace) in harm {
                let at = at.index(head.len());
                if replace { head[at] = byte } else { head.insert(at, byte) }
            }
            head
        })
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(head in any_head(), cut in any::<prop::sample::Index>()) {
            let mut scanner = Scanner::default();
            let first = scanner.read(&head[..cut.index(head.len())], &LIMITS);
            let pieces = match first {
                Ok(None) => scanner.read(&head, &LIMITS),
                known => known,
            };
            prop_assert_eq!(pieces, scan(&head));
        }

        #[test]
        fn what_passes_is_a_request_to_pingora_too(head in any_head()) {
            if let Ok(Some(found)) = scan(&head) {
                let mut bytes = head.clone();
                found.higher_minor.into_iter().for_each(|at| bytes[at] = b'1');
                let whole = bytes[found.start..found.end].to_vec();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let read = runtime.block_on(async {
                    let (_client, server) = tokio::net::UnixStream::pair().unwrap();
                    let stream: pingora::protocols::l4::stream::Stream = server.into();
                    let mut session = ServerSession::new_http1(Box::new(stream));
                    session.set_pipelined_prefix(bytes::BytesMut::from(&whole[..]));
                    session.read_request().await
                });
                prop_assert!(matches!(read, Ok(true)), "{:?}: {:?}", String::from_utf8_lossy(&whole), read);
            }
        }
    }
}
