//! The rules that a request can break before it is one.

use tollhouse_filters::problem::{self, Kind};

/// One rule about a request's head, its arrival or its framing, named by what breaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The connection begins with a TLS handshake, which this listener does not speak.
    Tls,
    /// The request is plain HTTP, and this listener speaks TLS.
    PlainHttp,
    /// The preface of HTTP/2 comes without the SETTINGS that belong to it.
    Settings,
    /// The connection ended inside a head.
    Unfinished,
    /// The head did not arrive in time.
    Slow,
    /// The first line is not a method, a target and a version with single spaces between them.
    RequestLine,
    /// The method is not a token.
    Method,
    /// The method is `CONNECT`: the gateway opens no tunnels.
    Connect,
    /// The target is none of the forms there are, or has bytes that no URI has.
    Target,
    /// The target is longer than `uri_bytes`.
    TargetTooLong,
    /// The target has an authority, and `Host` says another.
    TargetAgainstHost,
    /// The major version is not 1.
    Version,
    /// A line ends in LF alone.
    BareLf,
    /// A field line has no colon, or no name before it.
    FieldLine,
    /// A field line continues the one before, or there is white space before the first one.
    Folding,
    /// There is white space between a field's name and its colon.
    SpaceBeforeColon,
    /// A field's name is not a token.
    FieldName,
    /// A field's value has a control character: NUL, CR and others.
    FieldValue,
    /// There are more fields than `header_count`.
    TooManyFields,
    /// The fields are longer than `header_bytes`.
    FieldsTooLarge,
    /// There is no `Host` in HTTP/1.1.
    NoHost,
    /// There is more than one `Host`, or it is not a host.
    Host,
    /// `Content-Length` is not one number.
    Length,
    /// `Transfer-Encoding` is not `chunked`, alone and once, or the version is 1.0.
    Coding,
    /// There are both `Content-Length` and `Transfer-Encoding`.
    LengthAndCoding,
    /// A chunk of the body does not begin or end as chunks do, or its extensions have no end.
    Chunk,
    /// A line after the last chunk is not a field.
    Trailer,
    /// The body does not come at `min_rate`.
    SlowBody,
    /// The client does not take its answer at `min_rate`.
    SlowReader,
    /// The client breaks the rules of HTTP/2.
    Http2,
    /// It has more streams reset than answered.
    ResetFlood,
    /// It sends many frames that carry nothing.
    ControlFlood,
    /// It sends a field section without end.
    ContinuationFlood,
    /// A request of HTTP/2 names no host, or different ones, or different lengths.
    Malformed,
}

/// What a broken rule is called and answered with.
struct Entry {
    rule: Rule,
    name: &'static str,
    kind: &'static Kind,
    detail: &'static str,
    section: &'static str,
}

macro_rules! rules {
    ($($rule:ident $name:literal $kind:ident $section:literal $detail:literal;)*) => {
        const TABLE: &[Entry] = &[$(Entry {
            rule: Rule::$rule, name: $name, kind: &problem::$kind, detail: $detail, section: $section,
        }),*];
    };
}

rules! {
    Tls "tls" BAD_REQUEST "RFC 9112 s2.1" "the request is a TLS handshake, and this port speaks plain HTTP";
    PlainHttp "plain-http" BAD_REQUEST "RFC 9110 s4.2.2" "the request is plain HTTP, and this port speaks TLS: ask with `https`";
    Settings "settings" BAD_REQUEST "RFC 9113 s3.4" "the preface of HTTP/2 is not followed by SETTINGS";
    Unfinished "unfinished" BAD_REQUEST "RFC 9112 s8" "the connection ended inside the head";
    Slow "slow-head" REQUEST_TIMEOUT "RFC 9110 s15.5.9" "the head took too long";
    RequestLine "request-line" BAD_REQUEST "RFC 9112 s3" "the request line is not a method, a target and a version";
    Method "method" BAD_REQUEST "RFC 9112 s3.1" "the method is not a token";
    Connect "connect" METHOD_NOT_ALLOWED "RFC 9110 s9.3.6" "the gateway opens no tunnels";
    Target "target" BAD_REQUEST "RFC 9112 s3.2" "the target is not a valid one";
    TargetTooLong "target-too-long" URI_TOO_LONG "RFC 9110 s15.5.15" "the target is too long";
    TargetAgainstHost "target-against-host" BAD_REQUEST "RFC 9112 s3.2.2" "the target and `Host` name different hosts";
    Version "version" HTTP_VERSION "RFC 9110 s15.6.6" "the version is not HTTP/1.1 or HTTP/1.0";
    BareLf "bare-lf" BAD_REQUEST "RFC 9112 s2.2" "a line does not end in CR LF";
    FieldLine "field-line" BAD_REQUEST "RFC 9112 s5" "a field line has no name and colon";
    Folding "folding" BAD_REQUEST "RFC 9112 s5.2" "a field line begins with white space";
    SpaceBeforeColon "space-before-colon" BAD_REQUEST "RFC 9112 s5.1" "there is white space before a field's colon";
    FieldName "field-name" BAD_REQUEST "RFC 9110 s5.1" "a field's name is not a token";
    FieldValue "field-value" BAD_REQUEST "RFC 9110 s5.5" "a field's value has a control character";
    TooManyFields "too-many-fields" HEADERS_TOO_LARGE "RFC 6585 s5" "there are too many header fields";
    FieldsTooLarge "fields-too-large" HEADERS_TOO_LARGE "RFC 6585 s5" "the header fields are too large";
    NoHost "no-host" BAD_REQUEST "RFC 9112 s3.2" "`Host` is missing";
    Host "host" BAD_REQUEST "RFC 9112 s3.2" "there is more than one `Host`, or it is not valid";
    Length "content-length" BAD_REQUEST "RFC 9112 s6.3" "`Content-Length` is not one number";
    Coding "transfer-encoding" BAD_REQUEST "RFC 9112 s6.1" "the only `Transfer-Encoding` is `chunked`, in HTTP/1.1";
    LengthAndCoding "length-and-coding" BAD_REQUEST "RFC 9112 s6.3" "`Content-Length` and `Transfer-Encoding` exclude each other";
    Chunk "chunk" BAD_REQUEST "RFC 9112 s7.1" "the body's chunks are not valid";
    Trailer "trailer" BAD_REQUEST "RFC 9112 s7.1.2" "the body's trailer fields are not valid";
    SlowBody "slow-body" REQUEST_TIMEOUT "RFC 9110 s15.5.9" "the body came too slowly";
    SlowReader "slow-reader" CLIENT_CLOSED "RFC 9112 s9.5" "the answer was taken too slowly";
    Http2 "http2" BAD_REQUEST "RFC 9113 s5.4.1" "the connection breaks the rules of HTTP/2";
    ResetFlood "reset-flood" BAD_REQUEST "RFC 9113 s10.5" "too many streams are reset";
    ControlFlood "control-flood" BAD_REQUEST "RFC 9113 s10.5" "too many frames carry nothing";
    ContinuationFlood "continuation-flood" BAD_REQUEST "RFC 9113 s10.5.1" "the field section has no end";
    Malformed "malformed" BAD_REQUEST "RFC 9113 s8.1.1" "the request of HTTP/2 does not name one host, or not one length";
}

impl Rule {
    /// Every rule, in the order in which it is looked at.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|entry| entry.rule)
    }

    /// What logs and metrics call a refusal by it.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// What a request that breaks it is answered.
    pub fn kind(self) -> &'static Kind {
        self.entry().kind
    }

    /// What is wrong, for the client and the log.
    pub fn detail(self) -> &'static str {
        self.entry().detail
    }

    /// The section that says so, such as `RFC 9112 s3.2`.
    pub fn section(self) -> &'static str {
        self.entry().section
    }

    fn entry(self) -> &'static Entry {
        &TABLE[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_at_its_place_in_the_table() {
        for (index, rule) in Rule::all().enumerate() {
            assert_eq!(rule as usize, index, "{rule:?}");
            assert!(rule.section().starts_with("RFC "), "{rule:?}");
        }
        assert_eq!(TABLE.len(), Rule::Malformed as usize + 1);
    }
}
