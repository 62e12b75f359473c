//! Heads between what filters see and what is stored: lines, as HTTP/1.1 sends them.

use bytes::Bytes;
use http::header::{
    AGE, CONNECTION, CONTENT_LENGTH, DATE, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use pingora::http::{ResponseHeader, header_value_from_raw};

/// Fields that are about one connection, or are made anew each time (RFC 9111 s3.1).
const NOT_STORED: [HeaderName; 12] = [
    AGE,
    CONNECTION,
    CONTENT_LENGTH,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The lines of a head that are stored.
pub(super) fn lines(head: &ResponseHeader) -> Bytes {
    let mut head = head.clone();
    for name in &NOT_STORED {
        head.remove_header(name);
    }
    let mut lines = Vec::with_capacity(512);
    head.header_to_h1_wire(&mut lines);
    lines.into()
}

/// A head from its stored lines.
pub(super) fn parse(status: u16, lines: &Bytes) -> pingora::Result<ResponseHeader> {
    let mut head = ResponseHeader::build(status, Some(24))?;
    let mut rest = &lines[..];
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii_start());
        head.append_header(lines.slice_ref(name), header_value_from_raw(lines.slice_ref(value)))?;
    }
    Ok(head)
}

/// A stored head with the fields of a 304 in the place of its own (RFC 9111 s3.2), and its age, which is not stored but
/// counts (s4.2.3). Without a date it was made when it came (RFC 9110 s6.6.1), and not when what is stored was.
pub(super) fn updated(
    mut stored: ResponseHeader,
    validated: &ResponseHeader,
) -> pingora::Result<ResponseHeader> {
    stored.remove_header(&DATE);
    let names = validated.headers.keys().filter(|name| **name == AGE || !NOT_STORED.contains(name));
    for name in names {
        stored.remove_header(name);
        for value in validated.headers.get_all(name) {
            stored.append_header(name.clone(), HeaderValue::clone(value))?;
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&'static str, &str)]) -> ResponseHeader {
        let mut head = ResponseHeader::build(200, None).expect("valid");
        for (name, value) in fields {
            head.append_header(*name, *value).expect("valid");
        }
        head
    }

    #[test]
    fn what_is_about_one_connection_is_not_stored_as_rfc_9111_s3_1_says() {
        let made = head(&[
            ("A", "1"),
            ("Content-Length", "3"),
            ("Transfer-Encoding", "chunked"),
            ("Keep-Alive", "x"),
            ("Proxy-Authenticate", "x"),
            ("Age", "7"),
            ("a", "2: 3"),
        ]);
        let stored = lines(&made);
        assert_eq!(stored, "A: 1\r\na: 2: 3\r\n");
        let read = parse(404, &stored).expect("valid");
        assert_eq!(read.status, 404);
        assert_eq!(read.headers.get_all("a").iter().collect::<Vec<_>>(), ["1", "2: 3"]);
        assert_eq!(lines(&read), stored, "as often as it is read");
    }

    #[test]
    fn a_304_brings_fields_up_to_date_but_never_the_length_as_rfc_9111_s3_2_says() {
        let stored = head(&[("etag", "\"a\""), ("x", "1"), ("x", "2"), ("y", "1"), ("content-type", "a/b")]);
        let validated = head(&[("x", "3"), ("content-length", "99"), ("cache-control", "max-age=9")]);
        let updated = updated(stored, &validated).expect("valid");
        let mut names: Vec<_> =
            updated.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        names.sort_unstable();
        let expected: [(&str, &[u8]); 5] = [
            ("cache-control", b"max-age=9"),
            ("content-type", b"a/b"),
            ("etag", b"\"a\""),
            ("x", b"3"),
            ("y", b"1"),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_a_304_confirms_is_as_old_as_that_though_it_says_no_date_as_rfc_9110_s6_6_1_says() {
        for date in [None, Some("Mon, 07 Nov 1994 08:49:37 GMT")] {
            let validated = date.map(|date| ("date", date));
            let stored = head(&[("etag", "\"a\""), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")]);
            let updated = updated(stored, &head(validated.as_slice())).expect("valid");
            assert_eq!(updated.headers.get("date").map(|date| date.as_bytes()), date.map(str::as_bytes));
        }
    }

    #[test]
    fn the_age_of_a_304_is_known_and_not_stored_as_rfc_9111_s4_2_3_says() {
        let stored = head(&[("etag", "\"a\"")]);
        let updated = updated(stored, &head(&[("age", "3500")])).expect("valid");
        assert_eq!(updated.headers["age"], "3500");
        assert_eq!(lines(&updated), "etag: \"a\"\r\n");
    }
}
