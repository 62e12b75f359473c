//! Lines of text: templates, and the Common and Combined Log Formats as Apache's `mod_log_config`
//! and NGINX's `ngx_http_log_module` write them.

use std::fmt::{self, Write};
use std::ops::Range;

use http::HeaderName;
use http::header::{HOST, REFERER, USER_AGENT};
use tollhouse_filters::template::{Part, parts, parts_beside};
use tollhouse_filters::tree::suggest;

use super::super::redact::{MASK, Redactor};
use super::super::timestamp::{CommonTime, Timestamp};
use super::line::{Access, MAX_VALUE, millis};

/// What a line is made of, taken apart once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    parts: Vec<Part<Field>>,
    written: Box<str>,
}

/// A part of a line that is filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Time,
    TimeCommon,
    RequestId,
    RequestLine,
    Listener,
    Client,
    Method,
    Scheme,
    Host,
    Path,
    Query,
    Protocol,
    Route,
    Service,
    Version,
    Variant,
    Upstream,
    Backend,
    Attempts,
    Tries,
    Status,
    BytesIn,
    BytesOut,
    /// `-` instead of 0, as `%b` of Apache.
    BytesOutOrDash,
    Elapsed,
    Throttled,
    UpstreamElapsed,
    Cache,
    Consumer,
    Identity,
    DeniedBy,
    Reason,
    UserAgent,
    Referer,
    Error,
}

/// What fields are called in templates; where other templates have the same value, by the same name.
const FIELDS: [(&str, Field); 34] = [
    ("time", Field::Time),
    ("time.common", Field::TimeCommon),
    ("request.id", Field::RequestId),
    ("request.line", Field::RequestLine),
    ("listener", Field::Listener),
    ("client.address", Field::Client),
    ("request.method", Field::Method),
    ("request.scheme", Field::Scheme),
    ("request.host", Field::Host),
    ("request.path", Field::Path),
    ("request.query", Field::Query),
    ("request.protocol", Field::Protocol),
    ("route", Field::Route),
    ("service", Field::Service),
    ("version", Field::Version),
    ("variant", Field::Variant),
    ("upstream", Field::Upstream),
    ("backend", Field::Backend),
    ("attempts", Field::Attempts),
    ("tries", Field::Tries),
    ("status", Field::Status),
    ("bytes_in", Field::BytesIn),
    ("bytes_out", Field::BytesOut),
    ("elapsed_ms", Field::Elapsed),
    ("throttled_ms", Field::Throttled),
    ("upstream_ms", Field::UpstreamElapsed),
    ("cache", Field::Cache),
    ("consumer", Field::Consumer),
    ("identity", Field::Identity),
    ("denied_by", Field::DeniedBy),
    ("reason", Field::Reason),
    ("user_agent", Field::UserAgent),
    ("referer", Field::Referer),
    ("error", Field::Error),
];

/// Apache's `%h %l %u %t "%r" %>s %b`.
const COMMON: &str = r#"${client.address} - - [${time.common}] "${request.line}" ${status} ${%b}"#;
/// Apache's `combined`: the common format, `"%{Referer}i" "%{User-agent}i"`.
const COMBINED: &str = r#"${client.address} - - [${time.common}] "${request.line}" ${status} ${%b} "${referer}" "${user_agent}""#;

impl Layout {
    /// Parses a template; the message names what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_beside(&[], text)
    }

    /// As [`parse`](Self::parse), of a text of which these parts are literal; they stand in order.
    pub fn parse_beside(literal: &[Range<usize>], text: &str) -> Result<Self, String> {
        if text.contains(['\n', '\r']) {
            return Err("a line of the access log cannot have a line break".to_owned());
        }
        Ok(Self { parts: parts_beside(literal, text, Field::parse)?, written: text.into() })
    }

    /// The Common Log Format.
    pub(super) fn common() -> Self {
        Self::known(COMMON)
    }

    /// The Combined Log Format.
    pub(super) fn combined() -> Self {
        Self::known(COMBINED)
    }

    fn known(text: &str) -> Self {
        let field = |name: &str| if name == "%b" { Ok(Field::BytesOutOrDash) } else { Field::parse(name) };
        Self { parts: parts(text, field).expect("a constant that a test parses"), written: text.into() }
    }

    /// Appends one request, with its line break.
    pub fn write(&self, access: &Access<'_>, redactor: &Redactor<'_>, buffer: &mut Vec<u8>) {
        let mut line = Line { access, redactor, out: Escaped(buffer) };
        for part in &self.parts {
            match part {
                Part::Text(text) => line.out.0.extend_from_slice(text.as_bytes()),
                Part::Variable(field) => line.field(*field),
            }
        }
        buffer.push(b'\n');
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl Field {
    fn parse(name: &str) -> Result<Self, String> {
        if let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == name) {
            return Ok(*field);
        }
        let names = || FIELDS.iter().map(|(known, _)| *known);
        // The names of the JSON format are known to many: `request_id`, `method`, `client`.
        let of_json = names().find(|known| {
            known.replace('.', "_") == name
                || known.rsplit('.').next() == Some(name)
                || known.split('.').next() == Some(name)
        });
        let guess = of_json.or_else(|| suggest(name, names()));
        let guess = guess.map(|known| format!("; did you mean `${{{known}}}`?")).unwrap_or_default();
        Err(format!("`${{{name}}}` is no field of the access log{guess}"))
    }
}

/// A line being written. What is absent is `-`.
struct Line<'a> {
    access: &'a Access<'a>,
    redactor: &'a Redactor<'a>,
    out: Escaped<'a>,
}

impl Line<'_> {
    fn field(&mut self, field: Field) {
        let access = self.access;
        match field {
            Field::Time => self.show(Timestamp(access.time)),
            Field::TimeCommon => self.show(CommonTime(access.time)),
            Field::RequestId => self.text(access.request_id),
            Field::RequestLine => self.request_line(),
            Field::Listener => self.text(access.listener),
            Field::Client => self.show(access.client),
            Field::Method => self.present(access.method.as_bytes()),
            Field::Scheme => self.text(access.scheme),
            Field::Host => self.header(&HOST, Some(&self.redactor.host(access.host))),
            Field::Path => self.present(&self.redactor.path(access.path)),
            Field::Query => self.query(),
            Field::Protocol => self.text(access.protocol),
            Field::Route => self.text(access.route),
            Field::Service => self.optional(access.service),
            Field::Version => self.optional(access.version),
            Field::Variant => self.optional(access.variant),
            Field::Upstream => self.optional(access.upstream),
            Field::Backend => self.optional(access.backend),
            Field::Attempts => self.show(access.attempts),
            Field::Tries => self.optional(access.tries),
            Field::Status => self.show(format_args!("{:03}", access.status)),
            Field::BytesIn => self.show(access.bytes_in),
            Field::BytesOutOrDash if access.bytes_out == 0 => self.text("-"),
            Field::BytesOut | Field::BytesOutOrDash => self.show(access.bytes_out),
            Field::Elapsed => self.show(format_args!("{:.3}", millis(access.elapsed))),
            Field::Throttled => self.time(access.throttled),
            Field::UpstreamElapsed => self.time(access.upstream_elapsed),
            Field::Cache => self.optional(access.cache),
            Field::Consumer => self.optional(access.consumer),
            Field::Identity => self.optional(access.identity),
            Field::DeniedBy => self.optional(access.denied_by),
            Field::Reason => self.optional(access.reason),
            Field::UserAgent => self.header(&USER_AGENT, access.user_agent),
            Field::Referer => self.referer(),
            Field::Error => self.optional(access.error),
        }
    }

    /// Method, target and version as in HTTP/1; the version of HTTP/2 as Apache and NGINX write it. Where no line
    /// could be read there is none.
    fn request_line(&mut self) {
        let access = self.access;
        if access.method.is_empty() {
            return self.text("-");
        }
        self.text(access.method);
        self.text(" ");
        self.bytes(&self.redactor.path(access.path));
        if access.query.is_some() {
            self.text("?");
            self.query();
        }
        self.text(" ");
        self.text(if access.protocol == "HTTP/2" { "HTTP/2.0" } else { access.protocol });
    }

    fn query(&mut self) {
        let Some(query) = self.access.query else { return self.text("-") };
        let (query, end) = cut(query);
        let redactor = self.redactor;
        self.show(format_args!("{}{end}", redactor.query(query)));
    }

    fn referer(&mut self) {
        match self.access.referer {
            Some(url) if !self.redactor.hides(&REFERER) => {
                let (url, end) = cut(url);
                let redactor = self.redactor;
                self.show(format_args!("{}{end}", redactor.url(url)));
            }
            other => self.header(&REFERER, other),
        }
    }

    fn header(&mut self, name: &HeaderName, value: Option<&[u8]>) {
        match value {
            Some(_) if self.redactor.hides(name) => self.text(MASK),
            Some(value) => self.present(value),
            None => self.text("-"),
        }
    }

    fn present(&mut self, bytes: &[u8]) {
        self.bytes(if bytes.is_empty() { b"-" } else { bytes });
    }

    fn time(&mut self, time: Option<std::time::Duration>) {
        match time {
            Some(time) => self.show(format_args!("{:.3}", millis(time))),
            None => self.text("-"),
        }
    }

    fn optional(&mut self, text: Option<&str>) {
        self.text(text.unwrap_or("-"));
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (bytes, end) = cut(bytes);
        self.out.push(bytes);
        self.out.push(end.as_bytes());
    }

    fn show(&mut self, value: impl fmt::Display) {
        // Writing to memory cannot fail.
        let _ = write!(self.out, "{value}");
    }
}

/// The beginning of a value, and `...` when it was cut.
fn cut(bytes: &[u8]) -> (&[u8], &'static str) {
    bytes.get(..MAX_VALUE).filter(|_| bytes.len() > MAX_VALUE).map_or((bytes, ""), |start| (start, "..."))
}

/// Writes `"`, `\`, and all that is not printable ASCII as `\xHH`, as NGINX does: no value can end
/// its quotes or its line.
struct Escaped<'a>(&'a mut Vec<u8>);

impl Escaped<'_> {
    fn push(&mut self, bytes: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        for byte in bytes {
            match byte {
                b'"' | b'\\' | ..b' ' | 0x7f.. => {
                    let [high, low] = [byte >> 4, byte & 15].map(|half| DIGITS[usize::from(half)]);
                    self.0.extend_from_slice(&[b'\\', b'x', high, low]);
                }
                plain => self.0.push(*plain),
            }
        }
    }
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
