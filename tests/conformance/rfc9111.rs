//! RFC 9111, HTTP Caching: over real sockets. What is pure is tested beside it, in `filters/src/caching/tests`.

use crate::harness::cached::{Cached, numbered};
use crate::harness::{Origin, Wire, request};

const FRESH: &str = "cache-control: max-age=3600\r\n";
/// Stale when it comes, with a validator.
const STALE: &str = "cache-control: max-age=10\r\nage: 20\r\netag: \"v1\"\r\n";

async fn fresh() -> Cached {
    Cached::new("{}", |nth, _| numbered(nth, FRESH)).await
}

#[tokio::test]
async fn s4_a_fresh_answer_is_reused_with_its_age() {
    let cached =
        Cached::new("{}", |nth, _| numbered(nth, "cache-control: max-age=3600\r\nage: 30\r\nx-a: 1\r\n"))
            .await;
    let first = cached.get("/").await;
    let second = cached.get("/").await;
    assert_eq!((first.text(), second.text(), cached.asked()), ("answer 1".into(), "answer 1".into(), 1));
    assert_eq!(second.field("x-a"), Some("1"));
    let age: u64 = second.field("age").expect("s5.1: an age").parse().expect("a number");
    assert!((30..=40).contains(&age), "{age}");
    assert_eq!(second.head.all("age").len(), 1);
}

#[tokio::test]
async fn s3_what_is_forbidden_is_not_stored() {
    for fields in [
        "cache-control: no-store\r\n",
        "cache-control: private, max-age=60\r\n",
        "cache-control: max-age=60\r\nvary: *\r\n",
        "cache-control: max-age=60\r\nset-cookie: a=b\r\n",
        "expires: 0\r\n",
        "",
    ] {
        let cached = Cached::new("{}", move |nth, _| numbered(nth, fields)).await;
        cached.get("/").await;
        assert_eq!((cached.get("/").await.text(), cached.asked()), ("answer 2".into(), 2), "{fields}");
    }
}

#[tokio::test]
async fn s3_what_is_about_who_asks_is_not_stored_as_rfc_6585_s3_to_s6_say_nor_takes_what_is() {
    for status in [
        "428 Precondition Required",
        "429 Too Many Requests",
        "431 Request Header Fields Too Large",
        "511 Network Authentication Required",
    ] {
        let refusal = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\ncache-control: max-age=60\r\n\r\n");
        let options = "{statuses: {400-599: 60s}}";
        let cached = Cached::new(options, move |nth, head| match head.field("x-odd") {
            Some(_) => refusal.clone(),
            None => numbered(nth, FRESH),
        })
        .await;
        assert_eq!(cached.get("/").await.text(), "answer 1");
        for asked in 2..7 {
            let refused = cached.send("GET /", "X-Odd: 1\r\nCache-Control: no-cache\r\n").await;
            assert!(status.starts_with(&refused.status.to_string()), "{status}: {refused:?}");
            assert_eq!(refused.field("cache-status"), Some("tollhouse; fwd=request; detail=asker-status"));
            assert_eq!(
                (cached.get("/").await.text(), cached.asked()),
                ("answer 1".into(), asked),
                "{status}"
            );
        }
        cached.send("GET /new", "X-Odd: 1\r\n").await;
        assert_eq!(cached.get("/new").await.text(), "answer 8", "{status}");
    }
}

#[tokio::test]
async fn s3_1_fields_about_a_connection_are_not_stored() {
    let fields =
        "cache-control: max-age=60\r\nconnection: x-a, keep-alive\r\nx-a: 1\r\nkeep-alive: 5\r\nx-b: 1\r\n";
    let cached = Cached::new("{}", move |nth, _| numbered(nth, fields)).await;
    cached.get("/").await;
    let second = cached.get("/").await;
    assert_eq!(cached.asked(), 1);
    assert_eq!(
        (second.field("x-a"), second.field("keep-alive"), second.field("x-b")),
        (None, None, Some("1"))
    );
}

#[tokio::test]
async fn s3_3_what_was_cut_is_neither_whole_nor_stored() {
    for cut in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\nconnection: close\r\ncache-control: max-age=60\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\ncache-control: max-age=60\r\n\r\n5\r\nshort\r\n",
    ] {
        let cached =
            Cached::new("{}", move |nth, _| if nth == 1 { cut.into() } else { numbered(nth, FRESH) }).await;
        let mut wire = Wire::connect(cached.gateway.address()).await;
        wire.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
        assert!(wire.answer().await.is_err(), "the client sees that it was cut");
        assert_eq!(cached.get("/").await.text(), "answer 2");
        assert_eq!(cached.get("/").await.text(), "answer 2");
    }
}

#[tokio::test]
async fn s3_3_what_ends_with_its_connection_may_be_cut_and_is_not_stored() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncache-control: max-age=60\r\n\r\nwho knows";
    let cached = Cached::new("{}", move |_, _| answer.into()).await;
    assert_eq!(cached.get("/").await.text(), "who knows");
    cached.get("/").await;
    assert_eq!(cached.asked(), 2);
}

#[tokio::test]
async fn s3_4_parts_are_not_stored_and_are_served_from_what_is_whole() {
    let part = "HTTP/1.1 206 Partial Content\r\ncontent-length: 2\r\ncontent-range: bytes 0-1/8\r\n\
                cache-control: max-age=60\r\n\r\nan";
    let cached = Cached::new("{}", move |nth, head| match head.field("range") {
        Some(_) => part.into(),
        None => numbered(nth, FRESH),
    })
    .await;
    for _ in 0..2 {
        assert_eq!(cached.send("GET /", "Range: bytes=0-1\r\n").await.status, 206);
    }
    assert_eq!(cached.asked(), 2, "each goes to the origin");
    assert_eq!(cached.get("/").await.text(), "answer 3");
    let from_whole = cached.send("GET /", "Range: bytes=-1\r\n").await;
    assert_eq!((from_whole.status, from_whole.text()), (206, "3".into()));
    assert_eq!(from_whole.field("content-range"), Some("bytes 7-7/8"));
    let none = cached.send("GET /", "Range: bytes=8-\r\n").await;
    assert_eq!((none.status, none.field("content-range")), (416, Some("bytes */8")));
    // s3: who stands before this cache is not to keep it for those who ask for all.
    assert_eq!(none.problem(), "range-not-satisfiable");
    assert_eq!(none.field("cache-control"), Some("no-store"));
    let odd = cached.send("GET /", "Range: bytes=0-1,3-4\r\n").await;
    assert_eq!((odd.status, odd.text(), cached.asked()), (200, "answer 3".into(), 3));
}

#[tokio::test]
async fn s3_5_credentials_keep_an_answer_to_themselves() {
    let cached = fresh().await;
    cached.send("GET /", "Authorization: Basic eDp5\r\n").await;
    assert_eq!(cached.get("/").await.text(), "answer 2");
    let public = Cached::new("{}", |nth, _| numbered(nth, "cache-control: max-age=60, public\r\n")).await;
    public.send("GET /", "Authorization: Basic eDp5\r\n").await;
    assert_eq!(public.get("/").await.text(), "answer 1");
}

#[tokio::test]
async fn s4_1_requests_get_what_was_made_for_their_fields() {
    let cached =
        Cached::new("{}", |nth, _| numbered(nth, "cache-control: max-age=60\r\nvary: foo\r\n")).await;
    for (fields, answer) in [
        ("Foo: 1\r\n", "answer 1"),
        ("Foo: 2\r\n", "answer 2"),
        ("", "answer 3"),
        ("Foo: 1\r\n", "answer 1"),
        ("Foo: 2\r\n", "answer 2"),
        ("Bar: 1\r\n", "answer 3"),
    ] {
        assert_eq!(cached.send("GET /", fields).await.text(), answer, "{fields}");
    }
}

#[tokio::test]
async fn s4_2_4_what_is_stale_is_served_when_the_origin_is_gone_unless_it_forbids_that() {
    for (control, served) in
        [("max-age=10", true), ("max-age=10, must-revalidate", false), ("s-maxage=10", false)]
    {
        let fields = format!("cache-control: {control}\r\nage: 20\r\netag: \"v\"\r\n");
        let cached =
            Cached::new("{}", move |nth, _| if nth == 1 { numbered(nth, &fields) } else { String::new() })
                .await;
        cached.get("/").await;
        let second = cached.get("/").await;
        assert_eq!((second.status == 200, second.text() == "answer 1"), (served, served), "{control}");
        assert!(cached.asked() > 1);
    }
}

#[tokio::test]
async fn s4_3_what_is_stale_is_validated_and_brought_up_to_date() {
    let cached = Cached::new("{}", |nth, _| match nth {
        1 => numbered(
            nth,
            &format!("{STALE}x-a: 1\r\nx-b: 1\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        ),
        _ => "HTTP/1.1 304 Not Modified\r\netag: \"v1\"\r\ncache-control: max-age=3600\r\nx-a: 2\r\n\r\n"
            .into(),
    })
    .await;
    cached.get("/").await;
    for _ in 0..2 {
        let validated = cached.get("/").await;
        assert_eq!((validated.status, validated.text()), (200, "answer 1".into()));
        assert_eq!((validated.field("x-a"), validated.field("x-b")), (Some("2"), Some("1")));
    }
    let seen = cached.seen();
    assert_eq!(seen.len(), 2, "validated once, and fresh after that");
    assert_eq!(seen[1].field("if-none-match"), Some("\"v1\""));
    assert_eq!(seen[1].field("if-modified-since"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
}

#[tokio::test]
async fn s4_3_3_what_changed_takes_the_place_of_what_was_stored() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, if nth == 1 { STALE } else { FRESH })).await;
    cached.get("/").await;
    assert_eq!(cached.get("/").await.text(), "answer 2");
    assert_eq!(cached.get("/").await.text(), "answer 2");
}

#[tokio::test]
async fn s4_3_4_a_304_about_something_else_updates_nothing() {
    let cached = Cached::new("{}", |nth, head| match (nth, head.field("if-none-match")) {
        (1, _) => numbered(nth, STALE),
        (_, Some(_)) => "HTTP/1.1 304 Not Modified\r\netag: \"other\"\r\n\r\n".into(),
        _ => numbered(nth, FRESH),
    })
    .await;
    cached.get("/").await;
    assert_eq!(cached.get("/").await.text(), "answer 3");
}

#[tokio::test]
async fn s4_3_2_a_client_that_has_it_is_told_so_and_its_conditions_are_its_own() {
    let cached =
        Cached::new("{}", |nth, _| numbered(nth, "cache-control: max-age=60\r\netag: \"v1\"\r\n")).await;
    let first = cached.send("GET /", "If-None-Match: \"other\"\r\n").await;
    assert_eq!(
        (first.status, cached.seen()[0].field("if-none-match")),
        (200, None),
        "what is fetched is for all"
    );
    let known = cached.send("GET /", "If-None-Match: W/\"v1\"\r\n").await;
    assert_eq!((known.status, known.field("etag"), known.text()), (304, Some("\"v1\""), String::new()));
    assert_eq!(known.field("content-length"), None);
    let head = cached.send("HEAD /", "If-None-Match: \"v1\"\r\n").await;
    assert_eq!((head.status, cached.asked()), (304, 1));
    cached.send("GET /", "If-Match: \"v1\"\r\n").await;
    assert_eq!(cached.asked(), 2, "that is for the origin to judge");
}

#[tokio::test]
async fn s4_4_a_successful_unsafe_request_invalidates_its_url() {
    let cached = Cached::new("{}", |nth, head| match head.line.as_bytes()[0] {
        b'P' if head.field("x-fail").is_some() => "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into(),
        b'P' => "HTTP/1.1 201 Created\r\ncontent-length: 0\r\nlocation: /b\r\n\r\n".into(),
        _ => numbered(nth, FRESH),
    })
    .await;
    cached.get("/a").await;
    cached.get("/b").await;
    cached.send("POST /a", "Content-Length: 0\r\nX-Fail: 1\r\n").await;
    assert_eq!(cached.get("/a").await.text(), "answer 1", "a failure changed nothing");
    cached.send("POST /a", "Content-Length: 0\r\n").await;
    assert_eq!(cached.get("/a").await.text(), "answer 5");
    assert_eq!(cached.get("/b").await.text(), "answer 6", "what it says is there now");
}

#[tokio::test]
async fn s5_2_1_clients_may_ask_for_something_fresher() {
    for fields in ["Cache-Control: no-cache\r\n", "Pragma: no-cache\r\n", "Cache-Control: max-age=0\r\n"] {
        let cached =
            Cached::new("{}", |nth, _| numbered(nth, "cache-control: max-age=60\r\nage: 5\r\n")).await;
        cached.get("/").await;
        assert_eq!(cached.send("GET /", fields).await.text(), "answer 2", "{fields}");
        assert_eq!(cached.get("/").await.text(), "answer 2", "{fields}: which is stored too");
    }
    let cached = fresh().await;
    cached.get("/").await;
    let fields = "Cache-Control: min-fresh=7200\r\n";
    assert_eq!(cached.send("GET /", fields).await.text(), "answer 2");
}

#[tokio::test]
async fn s5_2_1_2_clients_may_take_what_is_stale() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, STALE)).await;
    cached.get("/").await;
    assert_eq!(cached.send("GET /", "Cache-Control: max-stale=60\r\n").await.text(), "answer 1");
    assert_eq!(cached.send("GET /", "Cache-Control: max-stale=1\r\n").await.text(), "answer 2");
}

#[tokio::test]
async fn s5_2_1_7_clients_may_want_nothing_but_what_is_stored() {
    let cached = fresh().await;
    let missing = cached.send("GET /", "Cache-Control: only-if-cached\r\n").await;
    assert_eq!((missing.status, missing.problem().as_str(), cached.asked()), (504, "not-cached", 0));
    // RFC 9211 s2.2: `fwd` is for what was forwarded.
    assert_eq!(missing.field("cache-status"), Some("tollhouse; detail=not-cached"));
    cached.get("/").await;
    assert_eq!(cached.send("GET /", "Cache-Control: only-if-cached\r\n").await.text(), "answer 1");
}

#[tokio::test]
async fn s5_2_2_4_no_cache_is_validated_each_time() {
    let cached = Cached::new("{}", |nth, head| match head.field("if-none-match") {
        Some(_) => "HTTP/1.1 304 Not Modified\r\ncache-control: no-cache\r\netag: \"v\"\r\n\r\n".into(),
        None => numbered(nth, "cache-control: no-cache, max-age=60\r\netag: \"v\"\r\n"),
    })
    .await;
    for asked in 1..=3 {
        assert_eq!((cached.get("/").await.text(), cached.asked()), ("answer 1".into(), asked));
    }
}

#[tokio::test]
async fn s2_head_is_answered_from_get_and_never_the_other_way() {
    let cached = Cached::new("{}", |nth, head| match head.line.starts_with("HEAD") {
        true => format!("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n{FRESH}\r\n"),
        false => numbered(nth, FRESH),
    })
    .await;
    assert_eq!(cached.send("HEAD /", "").await.field("content-length"), Some("99"));
    assert_eq!(cached.get("/").await.text(), "answer 2", "nothing of HEAD was stored");
    let head = cached.send("HEAD /", "").await;
    assert_eq!((head.field("content-length"), cached.asked()), (Some("8"), 2));
}

#[tokio::test]
async fn s4_2_1_contradictions_are_not_fresh() {
    for fields in [
        "cache-control: max-age=60, max-age=0\r\n",
        "cache-control: max-age=abc\r\nexpires: Thu, 18 Aug 2050 02:01:18 GMT\r\n",
        "expires: Thu, 18 Aug 2050 02:01:18 GMT\r\nexpires: Thu, 18 Aug 2050 02:01:18 GMT\r\n",
        "cache-control: max-age=60\r\nage: 99999999999999999999\r\n",
        "cache-control: max-age=60\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
    ] {
        let cached = Cached::new("{}", move |nth, _| numbered(nth, fields)).await;
        cached.get("/").await;
        assert_eq!(cached.get("/").await.text(), "answer 2", "{fields}");
    }
}

#[tokio::test]
async fn s4_an_origin_that_cannot_be_reached_is_a_problem_where_nothing_is_stored() {
    let origin = Origin::dying_after(b"").await;
    let rest = format!(
        "upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: a, upstream: o, filters: [cache: {{}}]}}]",
        origin.address
    );
    let gateway = crate::harness::Gateway::start(&rest).await;
    let answer = request(gateway.address(), "GET /", "").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"));
}
