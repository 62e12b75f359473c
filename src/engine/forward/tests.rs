use proptest::prelude::*;

use super::*;

const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn a_valid_traceparent_gives_its_trace_and_flags() {
    assert_eq!(parse_traceparent(GIVEN), Some(("0af7651916cd43dd8448eb211c80319c", 1)));
}

#[test]
fn invalid_traceparents_are_not_continued() {
    let zero_trace = GIVEN.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
    for bad in [
        "",
        "00-x",
        &GIVEN.replace("00-0", "ff-0"),
        &GIVEN.to_uppercase(),
        &zero_trace,
        &format!("{GIVEN}-x"),
    ] {
        assert_eq!(parse_traceparent(bad), None, "{bad}");
    }
}

#[test]
fn an_ipv6_client_is_quoted_in_forwarded() {
    let ctx = Context::for_tests(
        tollhouse_filters::path::normalize("/", &Default::default()).expect("valid"),
        std::time::Instant::now(),
    );
    let mut text = Vec::new();
    push_forwarded("2001:db8::1".parse().ok(), Some("a.test"), &ctx, &mut text);
    assert_eq!(text, b"for=\"[2001:db8::1]\";host=\"a.test\";proto=http");
}

#[test]
fn every_field_is_known_by_its_name() {
    for field in Field::ALL {
        assert_eq!(Field::named(field.name()), Some(field));
    }
    assert!(HOP_BY_HOP.iter().all(|name| is_hop_by_hop(name.as_str())));
    for other in ["", "accept", "content-length", "x-forwarded-port"] {
        assert!(Field::named(other).is_none() && !is_hop_by_hop(other), "{other}");
    }
}

/// Requests with some of these fields, once or more.
fn requests() -> impl Strategy<Value = RequestHeader> {
    let name = prop::sample::select(vec![
        "host",
        "Via",
        "Forwarded",
        "x-forwarded-for",
        "X-Forwarded-Host",
        "x-forwarded-proto",
        "traceparent",
        "tracestate",
        "connection",
        "x-other",
    ]);
    prop::collection::vec((name, "[ -~]{0,6}"), 0..8).prop_map(|fields| {
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        for (name, value) in fields {
            request.append_header(name, value.trim()).expect("valid");
        }
        request
    })
}

proptest! {
    #[test]
    fn what_is_found_in_one_go_is_what_is_looked_up(request in requests()) {
        let fields = &request.headers;
        let mut traces = fields.get_all("traceparent").iter();
        let looked_up = Said {
            host: fields.get("host"),
            forwarded_host: fields.contains_key("x-forwarded-host"),
            traceparent: traces.next().filter(|_| traces.next().is_none()),
            tracestate: fields.contains_key("tracestate"),
            forwarded_for: fields.contains_key("x-forwarded-for"),
            forwarded: fields.contains_key("forwarded"),
            via: fields.contains_key("via"),
        };
        prop_assert_eq!(Said::by(&request), looked_up);
    }
}

#[test]
fn fields_named_by_connection_are_removed() {
    let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
    for (name, value) in [("connection", "close, x-hop"), ("x-hop", "1"), ("te", "trailers"), ("x-kept", "1")]
    {
        request.insert_header(name, value).expect("valid");
    }
    strip_hop_by_hop(&mut request);
    assert_eq!(request.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
}
