//! Rules by the sections of RFC 9111 that they are from, and freshness against a model of it.

mod model;
mod storing;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::*;

/// Fields from `(name, value)`.
pub(super) fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn response(value: &str) -> ResponseDirectives {
    ResponseDirectives::of(&fields(&[("cache-control", value)]))
}

#[test]
fn directives_are_read_as_rfc_9111_s5_2_writes_them() {
    assert_eq!(response("Max-Age=60, PUBLIC").max_age, Some(60));
    assert!(response("max-age=60 , public").public);
    assert_eq!(response("max-age=\"60\"").max_age, Some(60), "s5.2: both forms are to be accepted");
    assert_eq!(
        response("x=\"max-age=3600\", max-age=1").max_age,
        Some(1),
        "what is quoted is not a directive"
    );
    assert_eq!(response("x=\"a\\\"b, max-age=9\"").max_age, None);
    assert_eq!(response("max-age=003600").max_age, Some(3600));
    assert_eq!(response("max-age=99999999999999999999").max_age, Some(1 << 31), "s1.2.2");
    assert!(response("private=\"x-a\", no-cache=\"y\"").private && response("no-cache=\"y\"").no_cache);
    assert_eq!(response(", ,,"), ResponseDirectives::default());
}

#[test]
fn what_is_no_number_is_over_and_of_two_the_shorter_counts_as_rfc_9111_s4_2_1_says() {
    for value in ["max-age=abc", "max-age", "max-age='3600'", "max-age=-1", "max-age=3600.0", "max-age=3600a"]
    {
        assert_eq!(response(value).max_age, Some(0), "{value}");
    }
    assert_eq!(response("max-age=1800, max-age=1").max_age, Some(1));
    assert_eq!(response("max-age=1, max-age=1800").max_age, Some(1));
}

#[test]
fn gateways_are_spoken_to_by_name_as_rfc_9213_s2_says() {
    let both = |targeted: &str| {
        ResponseDirectives::of(&fields(&[("cdn-cache-control", targeted), ("cache-control", "no-store")]))
    };
    let said = both("max-age=60");
    assert!(said.targeted && !said.no_store && said.max_age == Some(60));
    for invalid in ["max-age=60, &&&&", "max-age=\"60\"", "max-age=6.5", "", "max-age"] {
        assert!(both(invalid).no_store, "ignored, as it is not valid: {invalid}");
    }
    assert!(both("no-store").no_store && both("private").private);
    assert!(!both("no-store=?0, max-age=1").no_store);
}

#[test]
fn pragma_counts_where_cache_control_says_nothing_as_rfc_9111_s5_4_says() {
    assert!(RequestDirectives::of(&fields(&[("pragma", "no-cache")])).no_cache);
    let both = fields(&[("pragma", "no-cache"), ("cache-control", "max-stale=5, min-fresh=2")]);
    let asked = RequestDirectives::of(&both);
    assert!(!asked.no_cache && asked.max_stale == Some(5) && asked.min_fresh == Some(2));
    let any = RequestDirectives::of(&fields(&[("cache-control", "max-stale, only-if-cached")]));
    assert!(any.only_if_cached && any.max_stale == Some(1 << 31));
}

#[test]
fn dates_have_three_forms_as_rfc_9110_s5_6_7_says() {
    for date in [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "SUN, 06 nov 1994 08:49:37 gMt",
        "Mon Nov  6 08:49:37 1994",
    ] {
        assert_eq!(http_date(date.as_bytes()), Some(784_111_777), "{date}");
    }
    for date in [
        "0",
        "",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun 06 Nov 1994 08:49:37 GMT",
        "Sun, 06  Nov 1994 08:49:37 GMT",
        "Sun, 06-Nov-1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 8:49:37 GMT",
        "\u{fc}",
    ] {
        assert_eq!(http_date(date.as_bytes()), None, "{date}");
    }
}

#[test]
fn a_request_has_a_variant_by_what_makes_a_difference_as_rfc_9111_s4_1_says() {
    let by = |name: &'static str, one: &[(&'static str, &str)], two: &[(&'static str, &str)]| {
        matches(&variant(&[HeaderName::from_static(name)], &fields(one)), &fields(two))
    };
    assert!(by("foo", &[("foo", "1")], &[("foo", "1"), ("bar", "2")]));
    assert!(!by("foo", &[("foo", "1")], &[]) && !by("foo", &[], &[("foo", "1")]) && by("foo", &[], &[]));
    assert!(!by("foo", &[], &[("foo", "")]), "an empty field is there");
    assert!(by("foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")]));
    assert!(!by("foo", &[("foo", "1, 2")], &[("foo", "2, 1")]), "the order of most fields counts");
    assert!(by("foo", &[("foo", "1,2")], &[("foo", " 1 ,  2 ")]));
    assert!(!by("foo", &[("foo", "\"a,b\"")], &[("foo", "\"a, b\"")]), "inside quotes, blanks count");
    let language = |one, two| by("accept-language", &[("accept-language", one)], &[("accept-language", two)]);
    assert!(language("en, de", "de,EN") && language("en;q=0.5", "en; q=0.5") && !language("en", "en;q=0.5"));
    assert!(!by("foo", &[("foo", "a")], &[("foo", "A")]));
}

#[test]
fn a_variant_cannot_be_forged_by_values_that_look_like_fields() {
    let names = [HeaderName::from_static("a"), HeaderName::from_static("b")];
    let one = variant(&names, &fields(&[("a", "1;b;2"), ("b", "2")]));
    assert!(!matches(&one, &fields(&[("a", "1")])) && matches(&one, &fields(&[("b", "2"), ("a", "1;b;2")])));
    assert!(matches(&[], &fields(&[("a", "1")])) && !matches(&[0, 0, 0, 9, 1], &fields(&[])));
}

#[test]
fn only_lists_are_compared_as_lists_as_rfc_9111_s4_1_says() {
    let same = |name: &'static str, one: &str, other: &str| {
        let names = [HeaderName::from_static(name)];
        matches(&variant(&names, &fields(&[(name, one)])), &fields(&[(name, other)]))
    };
    for (one, other) in [("t=a, b", "t=a,b"), ("t=a,b", "t=a,,b")] {
        assert!(!same("cookie", one, other) && !same("user-agent", one, other), "{one} {other}");
        assert!(same("x-list", one, other), "{one} {other}");
    }
    assert!(same("cookie", "t=a", "t=a"));
}

#[test]
fn vary_is_a_list_of_names_as_rfc_9110_s12_5_5_says() {
    let of = |value: &str| Vary::of(&fields(&[("vary", value)]));
    assert_eq!(of("B, a,,b"), Vary::By(vec![HeaderName::from_static("a"), HeaderName::from_static("b")]));
    for any in ["*", "a, *", "*, a", "a b", "\"a\""] {
        assert_eq!(of(any), Vary::Any, "{any}");
    }
    let many: Vec<String> = (0..300).map(|n| format!("x-{n}")).collect();
    assert_eq!(of(&many.join(",")), Vary::TooMany);
    let two = fields(&[("vary", "a"), ("vary", "*")]);
    assert_eq!(Vary::of(&two), Vary::Any, "the lines are one list");
}

#[test]
fn parts_are_taken_as_rfc_9110_s14_1_2_says() {
    for (range, got) in [
        ("bytes=0-1", Ranged::Part(0, 1)),
        ("bytes=1-", Ranged::Part(1, 9)),
        ("bytes=-3", Ranged::Part(7, 9)),
        ("bytes=-30", Ranged::Part(0, 9)),
        ("bytes=5-500", Ranged::Part(5, 9)),
        ("Bytes=9-9", Ranged::Part(9, 9)),
        ("bytes=0-18446744073709551616", Ranged::Part(0, 9)),
        ("bytes=10-", Ranged::Nothing),
        ("bytes=-0", Ranged::Nothing),
        ("bytes=18446744073709551616-", Ranged::Nothing),
        ("bytes=5-4", Ranged::Whole),
        ("bytes=0-1,3-4", Ranged::Whole),
        ("bytes=-", Ranged::Whole),
        ("bytes=a-b", Ranged::Whole),
        ("bytes=1-x", Ranged::Whole),
        ("bytes=+1-2", Ranged::Whole),
        ("lines=0-1", Ranged::Whole),
        ("bytes", Ranged::Whole),
        ("", Ranged::Whole),
    ] {
        assert_eq!(ranged(range.as_bytes(), 10), got, "{range}");
    }
    for range in ["bytes=0-", "bytes=-1", "bytes=0-0"] {
        assert_eq!(ranged(range.as_bytes(), 0), Ranged::Nothing, "{range}: there is nothing");
    }
}

#[test]
fn what_is_purged_is_served_while_it_is_validated_until_its_time_is_over_as_rfc_5861_s3_says() {
    let facts = Facts { lifetime: 100, while_revalidate: 30, ..Facts::default() };
    let asked = RequestDirectives::default();
    let purged = |seconds: u64| judge(&facts, &asked, Standing::Stale, seconds * 1000).serve;
    for seconds in [0, 99, 100, 129] {
        assert_eq!(purged(seconds), Serve::AndRevalidate, "{seconds}");
    }
    for seconds in [130, 1_000_000] {
        assert_eq!(purged(seconds), Serve::AfterValidation(Why::Stale), "{seconds}");
    }
}

fn selects(request: &[(&'static str, &str)], stored: &[(&'static str, &str)]) -> Selected {
    select((&Method::GET, &fields(request)), (StatusCode::OK, &fields(stored)), 10)
}

#[test]
fn who_has_what_is_stored_is_told_so_as_rfc_9110_s13_says() {
    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEW: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
    let tagged = [("etag", "\"a,b\""), ("last-modified", NEW)];
    for tag in ["\"a,b\"", "W/\"a,b\"", "\"x\", \"a,b\"", "\"a,b\" , \"x\"", "*"] {
        assert_eq!(selects(&[("if-none-match", tag)], &tagged), Selected::NotModified, "{tag}");
    }
    assert_eq!(selects(&[("if-none-match", "\"a\"")], &tagged), Selected::Whole);
    let both = [("if-none-match", "\"x\""), ("if-modified-since", NEW)];
    assert_eq!(selects(&both, &tagged), Selected::Whole, "s13.2.2: the tag alone counts");
    assert_eq!(selects(&[("if-modified-since", NEW)], &tagged), Selected::NotModified);
    assert_eq!(selects(&[("if-modified-since", OLD)], &tagged), Selected::Whole);
    assert_eq!(selects(&[("if-modified-since", "now")], &tagged), Selected::Whole);
    assert_eq!(
        selects(&[("if-modified-since", NEW)], &[("date", OLD)]),
        Selected::NotModified,
        "9111 s4.3.2"
    );
    let gone = select(
        (&Method::GET, &fields(&[("if-none-match", "\"a\"")])),
        (StatusCode::NOT_FOUND, &fields(&[("etag", "\"a\"")])),
        1,
    );
    assert_eq!(gone, Selected::Whole);
}

#[test]
fn a_part_of_what_changed_is_not_sent_as_rfc_9110_s13_1_5_says() {
    const MADE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const DATE: &str = "Sun, 06 Nov 1994 09:49:37 GMT";
    let stored = [("etag", "\"a\""), ("last-modified", MADE), ("date", DATE)];
    let with = |condition| selects(&[("range", "bytes=0-1"), ("if-range", condition)], &stored);
    assert_eq!(with("\"a\""), Selected::Part(0, 1));
    assert_eq!(with(MADE), Selected::Part(0, 1));
    for other in ["\"b\"", "W/\"a\"", DATE, "x"] {
        assert_eq!(with(other), Selected::Whole, "{other}");
    }
    assert_eq!(selects(&[("range", "bytes=20-")], &stored), Selected::NoSuchPart);
    let twice = [("range", "bytes=0-1"), ("range", "bytes=2-3")];
    assert_eq!(selects(&twice, &stored), Selected::Whole);
    let head =
        select((&Method::HEAD, &fields(&[("range", "bytes=0-1")])), (StatusCode::OK, &fields(&stored)), 10);
    assert_eq!(head, Selected::Whole, "s14.2: only GET knows parts");
}

#[test]
fn what_the_cache_did_is_said_as_rfc_9211_s2_writes_it() {
    let hit = CacheStatus { hit: true, ttl: Some(30), ..CacheStatus::default() };
    assert_eq!(hit.to_string(), "tollhouse; hit; ttl=30");
    let miss = CacheStatus {
        forwarded: Some(Forwarded::UriMiss),
        stored: true,
        collapsed: true,
        detail: Some("x".into()),
        ..CacheStatus::default()
    };
    assert_eq!(miss.to_string(), "tollhouse; fwd=uri-miss; stored; collapsed; detail=x");
    let validated = CacheStatus {
        forwarded: Some(Forwarded::Stale),
        forwarded_status: Some(304),
        ..CacheStatus::default()
    };
    assert_eq!(validated.to_string(), "tollhouse; fwd=stale; fwd-status=304");
}
