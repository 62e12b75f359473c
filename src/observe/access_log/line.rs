//! What one line says about a request.

use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::HeaderName;
use http::header::{HOST, REFERER, USER_AGENT};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;
use tollhouse_filters::context::Tls;

use super::super::log::is_unsafe;
use super::super::redact::{MASK, Redactor, write_lossy};
use super::super::timestamp::Timestamp;

/// Bytes shown of a value that the client chose; longer ones are cut and end in `…`.
pub(super) const MAX_VALUE: usize = 2048;

/// One finished request. What is absent is left out of the line.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// When its head was read.
    pub time: SystemTime,
    /// The id that the client and the upstream were told too.
    pub request_id: &'a str,
    /// The listener's name.
    pub listener: &'a str,
    /// The client's address, behind trusted proxies.
    pub client: IpAddr,
    /// The method as sent.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The authority asked for.
    pub host: &'a [u8],
    /// The path that routes are matched by, with the version that it was sent with; as sent where that is no path.
    pub path: &'a [u8],
    /// The query without its `?`, and without what is hidden of it.
    pub query: Option<&'a [u8]>,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'a str,
    /// What TLS agreed on; none without TLS.
    pub tls: Option<&'a Tls>,
    /// The route's name.
    pub route: &'a str,
    /// The service's name.
    pub service: Option<&'a str>,
    /// The version of the service.
    pub version: Option<&'a str>,
    /// The variant of the route's split.
    pub variant: Option<&'a str>,
    /// The upstream's name.
    pub upstream: Option<&'a str>,
    /// The address of the last backend tried.
    pub backend: Option<&'a str>,
    /// Attempts at backends.
    pub attempts: u32,
    /// All of them with their outcome, where there was more than one.
    pub tries: Option<&'a str>,
    /// The status sent; 499 when the client left before one was, 0 when unknown.
    pub status: u16,
    /// Bytes of content from the client.
    pub bytes_in: u64,
    /// Bytes of content to the client.
    pub bytes_out: u64,
    /// From the head to the end of the response; written as `elapsed_ms`.
    pub elapsed: Duration,
    /// How long it waited where more came than may; written as `throttled_ms`.
    pub throttled: Option<Duration>,
    /// From the first attempt to the upstream's last byte, or, where a cache asked it, to the head of its answer;
    /// written as `upstream_ms`.
    pub upstream_elapsed: Option<Duration>,
    /// What a cache did with it, as `Cache-Status` says it (RFC 9211).
    pub cache: Option<&'a str>,
    /// The consumer that called, as far as a filter knows it.
    pub consumer: Option<&'a str>,
    /// The identity by which it is known.
    pub identity: Option<&'a str>,
    /// The filter that answered in the route's place.
    pub denied_by: Option<&'a str>,
    /// Why it did.
    pub reason: Option<&'a str>,
    /// The field `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// The field `Referer`.
    pub referer: Option<&'a [u8]>,
    /// What went wrong.
    pub error: Option<&'a str>,
}

/// A request with what its line must hide.
pub(super) struct Line<'a> {
    pub(super) access: &'a Access<'a>,
    pub(super) redactor: &'a Redactor<'a>,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.request(&mut map)?;
        self.handling(&mut map)?;
        self.remarks(&mut map)?;
        map.end()
    }
}

impl Line<'_> {
    fn request<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let Self { access, redactor } = self;
        map.serialize_entry("time", &Shown(Timestamp(access.time)))?;
        map.serialize_entry("request_id", access.request_id)?;
        map.serialize_entry("listener", access.listener)?;
        map.serialize_entry("client", &access.client)?;
        map.serialize_entry("method", &Text(access.method.as_bytes()))?;
        map.serialize_entry("scheme", access.scheme)?;
        self.field(map, "host", &HOST, Some(&Text(&redactor.host(access.host))))?;
        map.serialize_entry("path", &Text(&redactor.path(access.path)))?;
        if let Some(query) = access.query {
            let (query, end) = cut(query);
            map.serialize_entry("query", &Shown(format_args!("{}{end}", redactor.query(query))))?;
        }
        map.serialize_entry("protocol", access.protocol)?;
        access.tls.map_or(Ok(()), |tls| self.tls(map, tls))
    }

    fn tls<M: SerializeMap>(&self, map: &mut M, tls: &Tls) -> Result<(), M::Error> {
        map.serialize_entry("tls_version", tls.version)?;
        map.serialize_entry("tls_cipher", tls.cipher)?;
        optional(map, "sni", tls.server_name.as_deref())?;
        let subject = tls.certificate.as_ref().map(|certificate| Text(certificate.subject.as_bytes()));
        optional(map, "client_certificate", subject)
    }

    fn handling<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let access = self.access;
        map.serialize_entry("route", access.route)?;
        optional(map, "service", access.service)?;
        optional(map, "version", access.version)?;
        optional(map, "variant", access.variant)?;
        optional(map, "upstream", access.upstream)?;
        optional(map, "backend", access.backend)?;
        map.serialize_entry("attempts", &access.attempts)?;
        optional(map, "tries", access.tries)?;
        map.serialize_entry("status", &access.status)?;
        map.serialize_entry("bytes_in", &access.bytes_in)?;
        map.serialize_entry("bytes_out", &access.bytes_out)?;
        map.serialize_entry("elapsed_ms", &millis(access.elapsed))?;
        optional(map, "throttled_ms", access.throttled.map(millis))?;
        optional(map, "upstream_ms", access.upstream_elapsed.map(millis))?;
        optional(map, "cache", access.cache)
    }

    fn remarks<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let Self { access, redactor } = self;
        optional(map, "consumer", access.consumer.map(|name| Text(name.as_bytes())))?;
        optional(map, "identity", access.identity)?;
        optional(map, "denied_by", access.denied_by)?;
        optional(map, "reason", access.reason.map(|text| Text(text.as_bytes())))?;
        self.field(map, "user_agent", &USER_AGENT, access.user_agent.map(Text).as_ref())?;
        let referer = access.referer.map(cut);
        let referer =
            referer.map(|(url, end)| fmt::from_fn(move |f| write!(f, "{}{end}", redactor.url(url))));
        self.field(map, "referer", &REFERER, referer.map(Shown).as_ref())?;
        optional(map, "error", access.error.map(|text| Text(text.as_bytes())))
    }

    /// A header field's value, or the mask where the document hides this field.
    fn field<M: SerializeMap>(
        &self,
        map: &mut M,
        key: &str,
        field: &HeaderName,
        value: Option<&impl Serialize>,
    ) -> Result<(), M::Error> {
        match value {
            Some(_) if self.redactor.hides(field) => map.serialize_entry(key, MASK),
            Some(value) => map.serialize_entry(key, value),
            None => Ok(()),
        }
    }
}

/// Bytes shown as text, cut when too long. Serialised piece by piece: no string is made.
struct Text<'a>(&'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match cut(self.0) {
            (whole, "") if let Ok(text) = str::from_utf8(whole) => serializer.serialize_str(text),
            (bytes, end) => serializer.collect_str(&fmt::from_fn(|f| {
                write_lossy(bytes, f)?;
                f.write_str(end)
            })),
        }
    }
}

/// Anything that can be shown, as a JSON string.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Escapes in strings also what RFC 8259 s7 lets stand there, and terminals and viewers act upon.
pub(super) struct Inert;

impl Formatter for Inert {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        for part in fragment.split_inclusive(is_unsafe) {
            let last = part.chars().next_back().filter(|last| is_unsafe(*last));
            let plain = &part[..part.len() - last.map_or(0, char::len_utf8)];
            writer.write_all(plain.as_bytes())?;
            if let Some(last) = last {
                // None of them needs more than four digits.
                write!(writer, "\\u{:04x}", u32::from(last))?;
            }
        }
        Ok(())
    }
}

fn optional<M: SerializeMap>(map: &mut M, key: &str, value: Option<impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(key, &value))
}

/// The beginning of a value, and `…` when it was cut.
fn cut(bytes: &[u8]) -> (&[u8], &'static str) {
    bytes.get(..MAX_VALUE).filter(|_| bytes.len() > MAX_VALUE).map_or((bytes, ""), |start| (start, "…"))
}

/// Milliseconds with three decimals.
pub(super) fn millis(duration: Duration) -> f64 {
    let micros = u32::try_from(duration.as_micros()).map_or(duration.as_secs_f64() * 1e6, f64::from);
    micros.round() / 1000.0
}

#[cfg(test)]
impl Access<'_> {
    /// A plain request, for tests.
    pub(crate) fn example() -> Self {
        Self {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123),
            request_id: "0b2c",
            listener: "web",
            client: IpAddr::from([192, 0, 2, 7]),
            method: "GET",
            scheme: "https",
            host: b"api.example.com",
            path: b"/users/1",
            query: Some(b"page=2"),
            protocol: "HTTP/1.1",
            tls: None,
            route: "users-read",
            service: None,
            version: None,
            variant: None,
            upstream: Some("users"),
            backend: Some("127.0.0.1:9001"),
            attempts: 1,
            tries: None,
            status: 200,
            bytes_in: 0,
            bytes_out: 512,
            elapsed: Duration::from_micros(12_345),
            throttled: None,
            cache: None,
            upstream_elapsed: Some(Duration::from_millis(11)),
            consumer: None,
            identity: None,
            denied_by: None,
            reason: None,
            user_agent: Some(b"curl/8"),
            referer: None,
            error: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::format_line;
    use super::*;

    fn line(access: &Access<'_>, rules: &[&str]) -> String {
        let rules: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let mut buffer = Vec::new();
        format_line(access, &Redactor::new(&rules), &mut buffer);
        String::from_utf8(buffer).unwrap()
    }

    fn parsed(access: &Access<'_>, rules: &[&str]) -> Value {
        serde_json::from_str(&line(access, rules)).unwrap()
    }

    #[test]
    fn a_line_has_its_fields_in_a_fixed_order_and_leaves_out_what_is_absent() {
        let expected = concat!(
            r#"{"time":"2026-01-01T00:00:00.123Z","request_id":"0b2c","listener":"web","client":"192.0.2.7","#,
            r#""method":"GET","scheme":"https","host":"api.example.com","path":"/users/1","query":"page=2","#,
            r#""protocol":"HTTP/1.1","route":"users-read","upstream":"users","backend":"127.0.0.1:9001","#,
            r#""attempts":1,"status":200,"bytes_in":0,"bytes_out":512,"elapsed_ms":12.345,"upstream_ms":11.0,"#,
            r#""user_agent":"curl/8"}"#,
            "\n"
        );
        assert_eq!(line(&Access::example(), &[]), expected);
    }

    #[test]
    fn no_value_breaks_out_of_its_line_or_its_field() {
        let evil = "x\"}\n{\"status\":200,\u{1b}[31m\r\u{0}\\é\u{7f}\u{9b}2J\u{2028}\u{202e}abc";
        let access = Access {
            method: evil,
            host: evil.as_bytes(),
            path: evil.as_bytes(),
            query: Some(evil.as_bytes()),
            user_agent: Some(evil.as_bytes()),
            referer: Some(evil.as_bytes()),
            reason: Some(evil),
            error: Some(evil),
            status: 400,
            ..Access::example()
        };
        let text = line(&access, &[]);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end().chars().any(is_unsafe), "{text}");
        assert!(text.contains("é\\u007f\\u009b2J\\u2028\\u202eabc"), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["status"], 400);
        for key in ["method", "host", "path", "query", "user_agent", "referer", "reason", "error"] {
            assert_eq!(value[key], evil, "{key}");
        }
    }

    #[test]
    fn a_target_that_could_not_be_read_shows_no_user() {
        let access = Access {
            path: b"http://u:SECRET@h/x",
            host: b"u:SECRET@h",
            referer: Some(b"//u:SECRET@h/#SECRET"),
            ..Access::example()
        };
        let value = parsed(&access, &[]);
        assert_eq!(
            [&value["path"], &value["host"], &value["referer"]],
            ["http://***@h/x", "***@h", "//***@h/#***"]
        );
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_replaced_not_dropped() {
        let access = Access { path: b"/a\xff\xc3b", user_agent: Some(b"\xf0\x9f"), ..Access::example() };
        let value = parsed(&access, &[]);
        assert_eq!(value["path"], "/a\u{FFFD}\u{FFFD}b");
        assert_eq!(value["user_agent"], "\u{FFFD}");
    }

    #[test]
    fn secrets_in_queries_are_masked_in_the_referer_too() {
        let access = Access {
            query: Some(b"a=1&api_key=s3cret"),
            referer: Some(b"https://x/?access_token=s3cret"),
            ..Access::example()
        };
        let text = line(&access, &[]);
        assert!(!text.contains("s3cret"), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["query"], "a=1&api_key=***");
        assert_eq!(value["referer"], "https://x/?access_token=***");
    }

    #[test]
    fn header_selectors_hide_logged_fields() {
        let access = Access { referer: Some(b"https://x/"), ..Access::example() };
        let value = parsed(&access, &["header:User-Agent", "header:referer", "header:host"]);
        for key in ["user_agent", "referer", "host"] {
            assert_eq!(value[key], "***", "{key}");
        }
    }

    #[test]
    fn a_long_value_is_cut_and_says_so() {
        let long = "é".repeat(5000);
        let secret = format!("{}&api_key=s3cret", "a".repeat(MAX_VALUE - 13));
        let access = Access {
            path: long.as_bytes(),
            query: Some(secret.as_bytes()),
            referer: Some(long.as_bytes()),
            ..Access::example()
        };
        let value = parsed(&access, &[]);
        assert_eq!(value["path"].as_str().unwrap().chars().count(), MAX_VALUE / 2 + 1);
        assert!(value["path"].as_str().unwrap().ends_with('…'));
        assert!(value["query"].as_str().unwrap().ends_with("&api_key=***…"));
        assert!(value["referer"].as_str().unwrap().ends_with('…'));
    }

    #[test]
    fn durations_of_any_length_are_numbers() {
        assert!((millis(Duration::from_nanos(1_234_567)) - 1.234).abs() < 1e-9);
        assert!(millis(Duration::MAX).is_finite());
    }
}
