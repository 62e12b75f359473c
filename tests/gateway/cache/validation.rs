//! What is stored, once the origin is asked about it: whose it is then, and for how long; and where it cannot be asked.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{FRESH, before, herd};
use crate::harness::cached::{Cached, numbered};
use crate::harness::{Answer, Gateway, Head, Origin, Wire, soon, until};

/// Stale when it comes, with a validator.
const STALE: &str = "cache-control: max-age=10\r\nage: 20\r\netag: \"v\"\r\n";
const ERROR: &str = "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";

fn not_modified(fields: &str) -> String {
    format!("HTTP/1.1 304 Not Modified\r\netag: \"v\"\r\n{fields}\r\n")
}

async fn ask(client: &mut Wire, cookie: &str) {
    client.send(format!("GET / HTTP/1.1\r\nHost: example.test\r\nCookie: a={cookie}\r\n\r\n")).await;
}

/// Two clients that ask the same, the first of which waits until it is let go.
struct Held {
    one: Wire,
    other: Wire,
    let_go: Arc<Notify>,
    /// What the origin was asked.
    asked: Arc<Mutex<Vec<Head>>>,
    gateway: Gateway,
    _origin: Origin,
}

/// One client has an answer and asks again, which the origin thinks about; meanwhile another one asks.
async fn one_held(answer: impl Fn(usize) -> String + Send + Sync + 'static) -> Held {
    let (asked, let_go): (Arc<Mutex<Vec<Head>>>, _) = (Arc::default(), Arc::new(Notify::new()));
    let (heads, gate, answer) = (asked.clone(), let_go.clone(), Arc::new(answer));
    let origin = Origin::new(move |mut wire| {
        let (heads, gate, answer) = (heads.clone(), gate.clone(), answer.clone());
        async move {
            while let Ok(head) = wire.head().await {
                let nth = {
                    let mut heads = heads.lock();
                    heads.push(head);
                    heads.len()
                };
                if nth == 2 {
                    gate.notified().await;
                }
                wire.send(answer(nth)).await;
            }
        }
    })
    .await;
    let gateway = Gateway::administered(&before(&origin, "[cache: {wait: 60s}]")).await;
    let mut one = Wire::connect(gateway.address()).await;
    let mut other = Wire::connect(gateway.address()).await;
    ask(&mut one, "1").await;
    assert_eq!(one.answer().await.expect("an answer").text(), "answer 1");
    ask(&mut one, "1").await;
    until("the second request", || (asked.lock().len() == 2).then_some(())).await;
    ask(&mut other, "2").await;
    Held { one, other, let_go, asked, gateway, _origin: origin }
}

/// What the two get, the other one having come before the first is let go.
async fn side_by_side(answer: impl Fn(usize) -> String + Send + Sync + 'static) -> [Answer; 2] {
    let Held { mut one, mut other, let_go, gateway, _origin, .. } = one_held(answer).await;
    soon("both", async { while gateway.number("tollhouse_requests_in_flight").await != 2 {} }).await;
    let_go.notify_one();
    [one.answer().await.expect("an answer"), other.answer().await.expect("an answer")]
}

#[tokio::test]
async fn who_asks_for_what_is_never_fresh_has_it_validated_and_waits_for_nobody() {
    for control in ["", "cache-control: max-age=0\r\n", "cache-control: no-cache\r\n"] {
        let mut held = one_held(move |nth| match nth {
            1 => numbered(nth, &format!("etag: \"v\"\r\n{control}")),
            _ => not_modified(control),
        })
        .await;
        assert_eq!(held.other.answer().await.expect("an answer").text(), "answer 1", "{control}");
        held.let_go.notify_one();
        assert_eq!(held.one.answer().await.expect("an answer").text(), "answer 1", "{control}");
        let asked = held.asked.lock();
        let validators: Vec<_> = asked.iter().map(|head| head.field("if-none-match")).collect();
        assert_eq!(validators, [None, Some("\"v\""), Some("\"v\"")], "{control}");
    }
}

#[tokio::test]
async fn who_waits_for_what_is_not_fresh_any_more_asks_for_itself_as_rfc_9111_s4_says() {
    for control in ["cache-control: max-age=0\r\n", "cache-control: no-cache\r\n"] {
        let answers = side_by_side(move |nth| match nth {
            1 => numbered(nth, STALE),
            2 => not_modified(control),
            nth => numbered(nth, &format!("etag: \"v\"\r\n{control}")),
        });
        let texts = answers.await.map(|answer| answer.text());
        assert_eq!(texts, ["answer 1", "answer 3"], "{control}");
    }
}

#[tokio::test]
async fn who_waits_gets_what_is_fresh_again_and_what_may_be_stale_after_an_error() {
    const LENIENT: &str = "cache-control: max-age=10, stale-if-error=60\r\nage: 20\r\netag: \"v\"\r\n";
    for (stored, second) in [(STALE, not_modified(FRESH)), (LENIENT, ERROR.to_owned())] {
        let shown = second.clone();
        let answers = side_by_side(move |nth| if nth == 2 { second.clone() } else { numbered(nth, stored) });
        let texts = answers.await.map(|answer| answer.text());
        assert_eq!(texts, ["answer 1", "answer 1"], "{shown}");
    }
}

#[tokio::test]
async fn a_304_may_say_by_what_an_answer_varies_as_rfc_9111_s4_1_says() {
    const VARIES: &str = "cache-control: max-age=3600\r\nvary: accept-language\r\n";
    let cached = Cached::new("{}", |nth, head| match head.field("if-none-match") {
        Some(_) => not_modified(VARIES),
        None if nth == 1 => numbered(nth, "cache-control: max-age=0\r\netag: \"v\"\r\n"),
        None => numbered(nth, VARIES),
    })
    .await;
    for (language, answer, asked) in [("en", 1, 1), ("en", 1, 2), ("de", 3, 3), ("en", 1, 3), ("de", 3, 3)] {
        let text = cached.send("GET /", &format!("Accept-Language: {language}\r\n")).await.text();
        assert_eq!((text, cached.asked()), (format!("answer {answer}"), asked), "{language}");
    }
}

#[tokio::test]
async fn the_age_of_a_304_counts_as_rfc_9111_s4_2_3_says() {
    let cached = Cached::new("{}", |nth, head| match head.field("if-none-match") {
        Some(_) => not_modified("age: 3500\r\ncache-control: max-age=3600\r\n"),
        None => numbered(nth, STALE),
    })
    .await;
    cached.get("/").await;
    for _ in 0..2 {
        let answer = cached.get("/").await;
        let age: u64 = answer.field("age").expect("s5.1: an age").parse().expect("a number");
        assert!((3500..=3510).contains(&age), "{age}");
        let status = answer.field("cache-status").unwrap_or_default();
        let ttl = status.split("ttl=").nth(1).and_then(|rest| rest.split(';').next()?.parse().ok());
        assert!(ttl.is_some_and(|ttl: i64| (90..=100).contains(&ttl)), "{status}");
    }
    assert_eq!(cached.asked(), 2, "it is fresh for as long");
}

#[tokio::test]
async fn who_may_not_share_what_a_304_confirms_takes_it_from_nobody() {
    let cached = Cached::new("{}", |nth, head| match head.field("if-none-match") {
        Some(_) => not_modified(FRESH),
        None => numbered(nth, &format!("{FRESH}etag: \"v\"\r\n")),
    })
    .await;
    assert_eq!(cached.get("/").await.text(), "answer 1");
    for asked in 2..6 {
        let alone = cached.send("GET /", "authorization: x\r\ncache-control: no-cache\r\n").await;
        assert_eq!((alone.text(), cached.asked()), ("answer 1".into(), asked));
        let status = alone.field("cache-status").unwrap_or_default();
        assert!(status.contains("fwd-status=304") && status.ends_with("detail=authorization"), "{status}");
        assert_eq!((cached.get("/").await.text(), cached.asked()), ("answer 1".into(), asked));
    }
    // Where clients have no say, one that wants nothing stored is answered from the cache too.
    let cached = Cached::new("{client_control: false}", |nth, head| match head.field("if-none-match") {
        Some(_) => not_modified("cache-control: max-age=0\r\n"),
        None => numbered(nth, "cache-control: max-age=0\r\netag: \"v\"\r\n"),
    })
    .await;
    for fields in ["", "cache-control: no-store\r\n", ""] {
        assert_eq!(cached.send("GET /", fields).await.text(), "answer 1", "{fields}");
    }
    assert_eq!(cached.asked(), 3);
}

#[tokio::test]
async fn nobody_waits_for_who_wants_nothing_stored_where_clients_have_no_say() {
    let (origin, mut taken) = Origin::handing_over().await;
    let filters = "[cache: {client_control: false, wait: 60s}]";
    let gateway = Gateway::administered(&before(&origin, filters)).await;
    let mut alone = Wire::connect(gateway.address()).await;
    alone.send("GET / HTTP/1.1\r\nHost: example.test\r\nCache-Control: no-store\r\n\r\n").await;
    let mut at_first = soon("a request", taken.recv()).await.expect("a connection");
    at_first.head().await.expect("a request");
    let mut others = herd(&gateway, 20).await;
    let mut at_second = soon("another request", taken.recv()).await.expect("a connection");
    at_second.head().await.expect("a request");
    soon("all", async { while gateway.number("tollhouse_requests_in_flight").await != 21 {} }).await;
    at_second.send(numbered(2, FRESH)).await;
    for other in &mut others {
        assert_eq!(other.answer().await.expect("an answer").text(), "answer 2");
    }
    at_first.send(numbered(1, FRESH)).await;
    assert_eq!(alone.answer().await.expect("an answer").text(), "answer 1");
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn who_wants_nothing_stored_has_nothing_fetched_anew() {
    let swr = "cache-control: max-age=10, stale-while-revalidate=600\r\nage: 20\r\netag: \"v\"\r\n";
    let cached = Cached::new("{client_control: false}", move |nth, _| numbered(nth, swr)).await;
    for fields in ["", "cache-control: no-store\r\n", ""] {
        assert_eq!(cached.send("GET /", fields).await.text(), "answer 1", "{fields}");
    }
    let asked = until("the origin to be asked", || cached.seen().get(1).cloned()).await;
    assert_eq!((asked.field("cache-control"), asked.field("if-none-match")), (None, Some("\"v\"")));
}

#[tokio::test]
async fn what_comes_without_a_date_gets_one_once_as_rfc_9110_s6_6_1_says() {
    let second = || UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let cached = Cached::new("{}", |nth, head| match head.field("if-none-match") {
        Some(_) => not_modified(FRESH),
        None => numbered(nth, STALE),
    })
    .await;
    let mut dates = Vec::new();
    for _ in 0..3 {
        let answer = cached.get("/").await;
        dates.push(answer.field("date").expect("a date").to_owned());
        let now = second();
        until("another second", || (second() != now).then_some(())).await;
    }
    // Stored, validated, and from the cache.
    assert_eq!(cached.asked(), 2);
    assert!(dates[0] != dates[1] && dates[1] == dates[2], "{dates:?}");
    // Parts of it, and that it has not changed, have it too.
    for (fields, status) in [("Range: bytes=7-\r\n", 206), ("If-None-Match: \"v\"\r\n", 304)] {
        let answer = cached.send("GET /", fields).await;
        assert_eq!((answer.status, answer.field("date")), (status, Some(dates[2].as_str())));
    }
}

#[tokio::test]
async fn a_date_that_the_gateway_gives_makes_none_of_the_origins_strong_as_rfc_9110_s8_8_2_2_says() {
    const CHANGED: &str = "Sun, 06 Nov 2022 08:49:37 GMT";
    for (date, status) in [("", 200), ("date: Sun, 06 Nov 2022 08:49:38 GMT\r\n", 206)] {
        let cached = Cached::new("{override_origin: true, ttl: 1h}", move |nth, _| {
            numbered(nth, &format!("{date}last-modified: {CHANGED}\r\n"))
        })
        .await;
        assert_eq!(cached.get("/").await.text(), "answer 1");
        let fields = format!("Range: bytes=7-\r\nIf-Range: {CHANGED}\r\n");
        assert_eq!(cached.send("GET /", &fields).await.status, status, "{date}");
        assert_eq!(cached.asked(), 1, "{date}");
    }
}

#[tokio::test]
async fn what_nobody_called_fresh_is_not_served_when_the_origin_is_gone_as_rfc_9111_s4_2_4_says() {
    for (options, control, status) in [
        ("{}", "", 502),
        ("{stale_if_error: 60s}", "", 200),
        ("{statuses: {200: 0s}}", "", 200),
        ("{}", "cache-control: max-age=0\r\n", 200),
    ] {
        let cached = Cached::new(options, move |nth, _| match nth {
            1 => numbered(nth, &format!("etag: \"v\"\r\n{control}")),
            _ => String::new(),
        })
        .await;
        assert_eq!(cached.get("/").await.status, 200);
        assert_eq!(cached.get("/").await.status, status, "{options} {control}");
    }
}

#[tokio::test]
async fn an_origin_that_keeps_a_request_waiting_can_be_reached() {
    for (options, status) in [("{}", 504), ("{stale_if_error: 60s}", 200)] {
        let route = format!("name: a, upstream: o, filters: [cache: {options}], timeouts: {{read: 300ms}}");
        let cached = Cached::routed("", &format!("routes: [{{{route}}}]\n"), |nth, _| match nth {
            1 => numbered(nth, STALE),
            // After which nothing comes.
            _ => "HTTP/1.1 103 Early Hints\r\n\r\n".to_owned(),
        })
        .await;
        assert_eq!(cached.get("/").await.status, 200);
        assert_eq!(cached.get("/").await.status, status, "{options}");
    }
}

#[tokio::test]
async fn what_a_304_does_not_say_of_vary_stays_whatever_filters_add_as_rfc_9111_s3_2_says() {
    let filters = "[cache: {}, cors: {origins: ['https://a.test']}]";
    let cached = Cached::with(filters, |nth, head| match head.field("if-none-match") {
        Some(_) if nth < 4 => not_modified("cache-control: max-age=0\r\n"),
        Some(_) => not_modified(FRESH),
        None => numbered(nth, "cache-control: max-age=0\r\nvary: accept-language\r\netag: \"v\"\r\n"),
    })
    .await;
    for (language, answer, asked) in
        [("en", 1, 1), ("en", 1, 2), ("en", 1, 3), ("en", 1, 4), ("en", 1, 4), ("de", 5, 5), ("en", 1, 5)]
    {
        let given = cached.send("GET /", &format!("Accept-Language: {language}\r\n")).await;
        assert_eq!((given.text(), cached.asked()), (format!("answer {answer}"), asked), "{language}");
        let vary = given.head.all("vary").join(",").to_lowercase();
        let mut names: Vec<_> = vary.split(',').map(str::trim).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept-language", "origin"], "each once, however often it is validated");
    }
}

#[tokio::test]
async fn what_is_served_though_it_is_stale_is_counted_as_that() {
    let cached =
        Cached::new("{}", |nth, _| if nth == 1 { numbered(nth, STALE) } else { String::new() }).await;
    for _ in 0..3 {
        assert_eq!(cached.get("/").await.text(), "answer 1");
    }
    // The numbers of a request come before its line.
    until("the lines", || (cached.gateway.log().len() == 3).then_some(())).await;
    for (name, number) in [
        ("requests_total{result=\"stale\",route=\"all\"}", 2),
        ("requests_total{result=\"miss\",route=\"all\"}", 1),
        ("served_bytes_total{route=\"all\"}", 16),
    ] {
        assert_eq!(cached.gateway.number(&format!("tollhouse_cache_{name}")).await, number, "{name}");
    }
}

#[tokio::test]
async fn errors_that_end_in_silence_leave_what_is_stored_to_be_served_to_all() {
    let cached = Cached::new("{}", |nth, _| match nth {
        1 => numbered(nth, STALE),
        2..=4 => ERROR.to_owned(),
        _ => String::new(),
    })
    .await;
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(cached.get("/").await.status);
    }
    assert_eq!(statuses, [200, 503, 503, 503, 200, 200, 200]);
}

#[tokio::test]
async fn an_error_that_may_be_stored_does_not_take_the_place_of_an_answer_that_may_still_be_served() {
    let cached = Cached::new("{statuses: {500-599: 60s}}", |nth, head| match (head.target(), nth) {
        ("/", 1) => numbered(nth, STALE),
        ("/", 3..) => String::new(),
        _ => ERROR.to_owned(),
    })
    .await;
    assert_eq!(cached.get("/").await.text(), "answer 1");
    let error = cached.get("/").await;
    assert_eq!(
        (error.status, error.field("cache-status")),
        (503, Some("tollhouse; fwd=stale; detail=error"))
    );
    // RFC 9111 s4.3.3: it is forwarded, and what is stored stays for when the origin is gone.
    assert_eq!(cached.get("/").await.text(), "answer 1");
    let asked = cached.asked();
    for _ in 0..2 {
        assert_eq!(cached.get("/new").await.status, 503);
    }
    assert_eq!(cached.asked(), asked + 1, "where there is nothing better, it is stored");
}

#[tokio::test]
async fn an_error_that_may_be_stored_is_for_all_who_wait_though_it_is_not() {
    let error = "HTTP/1.1 503 No\r\ncontent-length: 0\r\ncache-control: max-age=60\r\n\r\n";
    let answers = side_by_side(move |nth| if nth == 2 { error.to_owned() } else { numbered(nth, STALE) });
    assert_eq!(answers.await.map(|answer| answer.status), [503, 503]);
}
