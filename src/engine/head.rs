//! What a request head must be before anything is decided by it: one host, one length, and no
//! `Connection` that takes away what filters and the gateway write later.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use pingora::http::RequestHeader;
use tollhouse_filters::host::host_of;
use tollhouse_filters::problem::{self, Problem};

/// The fields that are judged before all else, found in one go: to look each of them up takes longer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    /// Bytes of all field lines.
    pub(super) size: usize,
    pub(super) host: Lines<'a>,
    length: Lines<'a>,
    coding: Lines<'a>,
    pub(super) has: Has,
}

/// The lines of one field.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines<'a> {
    pub(super) first: Option<&'a HeaderValue>,
    more: bool,
}

/// Which fields there are; at intake they become fewer, but for the `Host` of an absolute target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Has {
    pub(super) accept: bool,
    pub(super) connection: bool,
    pub(super) length: bool,
    pub(super) upgrade: bool,
    pub(super) via: bool,
}

impl<'a> Lines<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        self.more = self.first.is_some();
        self.first = self.first.or(Some(value));
    }
}

impl<'a> Fields<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            fields.size += name.len() + value.len() + 4;
            match name {
                "host" => fields.host.add(value),
                "content-length" => fields.length.add(value),
                "transfer-encoding" => fields.coding.add(value),
                "accept" => fields.has.accept = true,
                "connection" => fields.has.connection = true,
                "upgrade" => fields.has.upgrade = true,
                "via" => fields.has.via = true,
                _ => {}
            }
        }
        fields.has.length = fields.length.first.is_some();
        fields
    }

    /// The host that `Host` names; none where there is none, or what it says is no host.
    pub(super) fn named_host(&self) -> Option<Cow<'a, str>> {
        host_of(self.host.first?.to_str().ok()?)
    }
}

/// Refuses a head that another server on the way might read in another way; `named` if its `Host` names a host.
pub(super) fn ambiguous(request: &RequestHeader, fields: &Fields<'_>, named: bool) -> Option<Problem> {
    let wrong = wrong_host(request, &fields.host, named).or_else(|| wrong_length(fields));
    let wrong = wrong.or_else(|| (request.version == Version::HTTP_2).then(|| http2(request)).flatten());
    // RFC 9112 s3.2.4.
    let asterisk = request.uri.path() == "*" && request.method != Method::OPTIONS;
    let wrong = wrong.or_else(|| asterisk.then_some("the target `*` is for OPTIONS only"));
    wrong.map(|detail| Problem::new(&problem::BAD_REQUEST).detail(detail))
}

/// RFC 9112 s3.2: exactly one valid `Host` in HTTP/1.1; in HTTP/2 `:authority` may stand for it.
fn wrong_host(request: &RequestHeader, host: &Lines<'_>, named: bool) -> Option<&'static str> {
    let authority = request.uri.authority();
    match host.first {
        _ if host.more => Some("there is more than one `Host`"),
        // An empty one is that of a target without authority (RFC 9110 s7.2).
        Some(host) if !named && !host.is_empty() => Some("`Host` is not valid"),
        None if request.version == Version::HTTP_11 => Some("`Host` is missing"),
        _ if authority.is_some_and(|authority| host_of(authority.as_str()).is_none()) => {
            Some("the target's authority is not valid")
        }
        _ => None,
    }
}

/// RFC 9112 s6.1 and s6.3: what says how long the body is must say one thing.
fn wrong_length(fields: &Fields<'_>) -> Option<&'static str> {
    let Fields { length, coding, .. } = fields;
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if length.more || length.first.is_some_and(|length| !digits(length.as_bytes())) {
        return Some("`Content-Length` is not one number");
    }
    let chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if coding.more || coding.first.is_some_and(|coding| !chunked(coding)) {
        return Some("the only `Transfer-Encoding` is `chunked`");
    }
    (length.first.is_some() && coding.first.is_some())
        .then_some("`Content-Length` and `Transfer-Encoding` exclude each other")
}

/// What HTTP/1 cannot say, or would say in another way, and the library of HTTP/2 lets pass.
fn http2(request: &RequestHeader) -> Option<&'static str> {
    let known = |scheme: &str| ["http", "https"].iter().any(|known| known.eq_ignore_ascii_case(scheme));
    if request.uri.scheme_str().is_some_and(|scheme| !known(scheme)) {
        return Some("`:scheme` is neither `http` nor `https`");
    }
    // RFC 9113 s8.3.1.
    if request.uri.path_and_query().is_some_and(|target| !target.as_str().starts_with(['/', '*'])) {
        return Some("`:path` does not begin with a slash");
    }
    // RFC 9110 s5.6.2; all other characters that no name has, `HeaderName` refuses itself.
    if request.headers.keys().any(|name| name.as_str().contains('"')) {
        return Some("a field's name is not a token");
    }
    padded(&request.headers)
}

/// RFC 9113 s8.2.1: no white space around values. HTTP/1 servers trim it, and would see another value than
/// conditions here did.
fn padded(headers: &HeaderMap) -> Option<&'static str> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let mut values = headers.values().map(HeaderValue::as_bytes);
    values
        .any(|value| blank(value.first()) || blank(value.last()))
        .then_some("a field's value begins or ends with white space")
}

/// Options of a connection that stay: what Pingora needs to know of it.
const OPTIONS: [&str; 3] = ["close", "keep-alive", "upgrade"];

/// Fields that `Connection` cannot name: for all on the way, or the gateway's to remove.
const UNTOUCHABLE: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Removes the fields that `Connection` names, and their names from it (RFC 9110 s7.6.1).
///
/// To be done before any filter: a client could else have removed what filters set.
pub(super) fn release_named(request: &mut RequestHeader) {
    if !request.headers.contains_key(header::CONNECTION) {
        return;
    }
    let lines = request.headers.get_all(header::CONNECTION).iter();
    let text = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect::<Vec<_>>().join(",");
    let mut kept: Vec<&str> = Vec::new();
    for name in text.split(',').map(str::trim) {
        match OPTIONS.iter().find(|option| option.eq_ignore_ascii_case(name)) {
            Some(option) if !kept.contains(option) => kept.push(option),
            Some(_) => {}
            None => release(request, name),
        }
    }
    request.remove_header(&header::CONNECTION);
    if !kept.is_empty()
        && let Ok(value) = HeaderValue::from_str(&kept.join(", "))
    {
        let _ = request.insert_header(header::CONNECTION, value);
    }
}

fn release(request: &mut RequestHeader, name: &str) {
    let Ok(name) = name.parse::<HeaderName>() else { return };
    let forwarding = name == header::FORWARDED || name.as_str().starts_with("x-forwarded-");
    if !forwarding && !UNTOUCHABLE.contains(&name) {
        request.remove_header(&name);
    }
}

/// Whether the client asks for a WebSocket (RFC 6455 s4.1), the only upgrade there is; the `Upgrade`
/// of any other request is removed, as a server may ignore it (RFC 9110 s7.8).
pub(super) fn settle_upgrade(request: &mut RequestHeader) {
    if !request.headers.contains_key(header::UPGRADE) {
        return;
    }
    let mut options = request.headers.get_all(header::CONNECTION).iter();
    let nominated = options.any(|line| {
        let mut options = line.as_bytes().split(|byte| *byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let mut asked = request.headers.get_all(header::UPGRADE).iter();
    let websocket = asked.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && asked.next().is_none();
    let with_body = request.headers.contains_key(header::TRANSFER_ENCODING)
        || request.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    let wanted = request.version == Version::HTTP_11 && nominated && websocket && !with_body;
    if !wanted {
        request.remove_header(&header::UPGRADE);
    }
}

/// Writes the length without leading zeros: some servers read those as octal, or count the digits.
pub(super) fn plain_length(request: &mut RequestHeader) {
    let length = request.headers.get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes);
    let Some(digits @ [b'0', _, ..]) = length else { return };
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count().min(digits.len() - 1);
    if let Ok(plain) = HeaderValue::from_bytes(&digits[zeros..]) {
        let _ = request.insert_header(header::CONTENT_LENGTH, plain);
    }
}

/// Makes the `Cookie` fields that HTTP/2 may send apart one again, as HTTP/1 servers expect (RFC 9113
/// s8.2.3).
pub(super) fn join_cookies(request: &mut RequestHeader) {
    if request.version != Version::HTTP_2 || request.headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> =
        request.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        let _ = request.insert_header(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FOUND: &[&str] =
        &["host", "content-length", "transfer-encoding", "accept", "connection", "upgrade", "via", "x-other"];

    fn request(lines: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("POST", b"/", None).expect("valid");
        request.set_version(Version::HTTP_11);
        for (name, value) in lines {
            request.append_header(*name, *value).expect("valid");
        }
        request
    }

    fn judged(request: &RequestHeader) -> Option<Problem> {
        let fields = Fields::of(&request.headers);
        ambiguous(request, &fields, fields.named_host().is_some())
    }

    fn is_ambiguous(lines: &[(&'static str, &str)]) -> bool {
        judged(&request(lines)).is_some()
    }

    proptest! {
        #[test]
        fn what_is_found_in_one_go_is_what_is_looked_up(
            lines in prop::collection::vec((prop::sample::select(FOUND), "[ -~]{0,6}"), 0..10),
        ) {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.trim())).collect();
            let headers = request(&lines).headers.clone();
            let looked_up = |name| {
                let mut lines = headers.get_all(name).iter();
                Lines { first: lines.next(), more: lines.next().is_some() }
            };
            let has = |name| headers.contains_key(name);
            let expected = Fields {
                size: headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum(),
                host: looked_up("host"),
                length: looked_up("content-length"),
                coding: looked_up("transfer-encoding"),
                has: Has {
                    accept: has("accept"),
                    connection: has("connection"),
                    length: has("content-length"),
                    upgrade: has("upgrade"),
                    via: has("via"),
                },
            };
            prop_assert_eq!(Fields::of(&headers), expected);
        }
    }

    #[test]
    fn a_request_of_http_1_1_has_exactly_one_valid_host_as_rfc_9112_s3_2_says() {
        assert!(is_ambiguous(&[]));
        assert!(is_ambiguous(&[("host", "a.test"), ("host", "a.test")]));
        for host in ["a b", "a.test,b.test", "a..test", "x@a.test", "a.test:x", "a/b", "a]b"] {
            assert!(is_ambiguous(&[("host", host)]), "{host}");
        }
        for host in ["", "a.test", "A.test.:80", "[::1]:80", "127.0.0.1"] {
            assert!(!is_ambiguous(&[("host", host)]), "{host}");
        }
    }

    #[test]
    fn the_length_of_a_body_is_said_once_as_rfc_9112_s6_says() {
        let (host, length, coding) = (("host", "a.test"), "content-length", "transfer-encoding");
        for lines in [
            &[host, (length, "5"), (length, "5")][..],
            &[host, (length, "5, 5")],
            &[host, (length, "+5")],
            &[host, (length, "")],
            &[host, (length, "5"), (coding, "chunked")],
            &[host, (coding, "chunked"), (coding, "chunked")],
            &[host, (coding, "gzip, chunked")],
            &[host, (coding, "identity")],
        ] {
            assert!(is_ambiguous(lines), "{lines:?}");
        }
        assert!(!is_ambiguous(&[host, (length, "5")]) && !is_ambiguous(&[host, (coding, "Chunked")]));
    }

    #[test]
    fn what_connection_names_is_gone_before_filters_run_and_named_no_more() {
        let mut head = request(&[
            ("connection", "close, X-Hop"),
            ("connection", "x-user, content-length, x-forwarded-for, upgrade"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("x-forwarded-for", "192.0.2.1"),
        ]);
        release_named(&mut head);
        let fields: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(
            fields,
            [
                ("content-length", &b"5"[..]),
                ("x-forwarded-for", b"192.0.2.1"),
                ("connection", b"close, upgrade"),
            ]
        );
    }

    #[test]
    fn a_value_of_http_2_has_no_white_space_around_it_as_rfc_9113_s8_2_1_says() {
        for (value, fine) in [(" 1", false), ("1 ", false), ("\t1", false), ("1 2", true), ("", true)] {
            let mut head = request(&[("host", "a.test"), ("x-admin", value)]);
            head.set_version(Version::HTTP_2);
            assert_eq!(judged(&head).is_none(), fine, "{value:?}");
        }
    }

    #[test]
    fn a_request_of_http_2_can_be_said_in_http_1_as_rfc_9113_s8_3_1_says() {
        let asks = |uri: &str| {
            let mut head = request(&[("host", "a.test")]);
            head.set_version(Version::HTTP_2);
            head.set_uri(uri.parse().expect("valid"));
            judged(&head).is_none()
        };
        assert!(asks("https://a.test/b?c") && asks("HTTP://a.test/"));
        assert!(!asks("ftp://a.test/") && !asks("http://a.test?c"));
    }

    #[test]
    fn a_length_has_no_leading_zeros() {
        for (written, plain) in [("007", "7"), ("0", "0"), ("000", "0"), ("10", "10")] {
            let mut head = request(&[("content-length", written)]);
            plain_length(&mut head);
            assert_eq!(head.headers["content-length"], plain);
        }
    }

    #[test]
    fn the_cookies_of_http_2_are_one_field() {
        let mut head = request(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        head.set_version(Version::HTTP_2);
        join_cookies(&mut head);
        let lines: Vec<_> = head.headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(lines, ["a=1; b=2; c=3"]);
    }

    #[test]
    fn an_asterisk_is_the_target_of_options_alone() {
        let asks = |method| {
            let mut head = RequestHeader::build(method, b"*", None).expect("valid");
            head.insert_header("host", "a.test").expect("valid");
            judged(&head).is_some()
        };
        assert!(asks("GET") && !asks("OPTIONS"));
    }

    #[test]
    fn only_a_websocket_without_a_body_is_an_upgrade() {
        let asks = |lines: &[(&'static str, &str)]| {
            let mut head = request(lines);
            settle_upgrade(&mut head);
            head.headers.contains_key(header::UPGRADE)
        };
        let (connection, websocket) = (("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket"));
        assert!(asks(&[connection, websocket]) && asks(&[connection, websocket, ("content-length", "0")]));
        assert!(!asks(&[websocket]), "`Connection` must name it");
        assert!(!asks(&[connection, ("upgrade", "h2c")]));
        assert!(!asks(&[connection, websocket, websocket]));
        assert!(!asks(&[connection, websocket, ("content-length", "5")]), "filters want its body");
        assert!(!asks(&[connection, websocket, ("transfer-encoding", "chunked")]));
    }
}
