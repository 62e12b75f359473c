//! What a cache fetches is tried again, waits and stays with a backend as any other request; and what comes instead of an
//! answer where an upstream refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::harness::cached::{Cached, numbered};
use crate::harness::{Gateway, Origin, Wire, get, refusing, request, soon, token, until};

const FRESH: &str = "cache-control: max-age=3600\r\n";
const SERVER_ERROR: &str = "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";

fn document(origins: &[&Origin], upstream: &str, cache: &str) -> String {
    let list: Vec<_> = origins.iter().map(|origin| format!("{{address: \"{}\"}}", origin.address)).collect();
    format!(
        "upstreams: [{{name: o, backends: [{}], {upstream}}}]\n\
         routes: [{{name: a, upstream: o, filters: [cache: {cache}]}}]\n",
        list.join(", ")
    )
}

#[tokio::test]
async fn a_fill_is_tried_again_after_the_statuses_that_are_written() {
    let cached = |upstream: &'static str| async move {
        let routes = format!("routes: [{{name: a, upstream: o, filters: [cache: {{}}], {upstream}}}]\n");
        Cached::routed("", &routes, |nth, _| match nth {
            1 => SERVER_ERROR.to_owned(),
            nth => numbered(nth, FRESH),
        })
        .await
    };
    let retried = cached("retries: {max: 1, conditions: [503]}").await;
    assert_eq!((retried.get("/").await.text(), retried.asked()), ("answer 2".into(), 2));
    assert_eq!(retried.get("/").await.text(), "answer 2", "it is stored");
    let not = cached("retries: {max: 1, conditions: [502]}").await;
    assert_eq!((not.get("/").await.status, not.asked()), (503, 1));
}

#[tokio::test]
async fn the_attempts_of_a_fill_are_counted_and_logged_as_those_of_any_request() {
    let (bad, good) = (refusing().await, Origin::answering(numbered(1, FRESH)).await);
    let document = document(&[&good, &good], "retries: {max: 1}", "{}");
    let document = document.replacen(&good.address.to_string(), &bad.to_string(), 1);
    let gateway = Gateway::administered(&document).await;
    for path in ["/1", "/2", "/3", "/4"] {
        assert_eq!(get(gateway.address(), path).await.status, 200, "{path}");
    }
    let lines = until("all lines", || Some(gateway.log()).filter(|log| log.len() == 4)).await;
    let tries = format!("{bad} connect_failed, {} 200", good.address);
    for line in &lines {
        assert_eq!((&line["upstream"], &line["cache"].is_string()), (&"o".into(), &true), "{line}");
        assert_eq!(line["backend"], good.address.to_string(), "{line}");
        assert!(line["upstream_ms"].is_number(), "{line}");
        assert!(line["attempts"] == 1 || line["tries"] == tries, "{line}");
    }
    let retried = lines.iter().filter(|line| line["attempts"] == 2).count() as u64;
    assert!(retried > 0, "one of them began at the backend that refuses: {lines:?}");
    for (series, number) in [
        ("attempts_total{upstream=\"o\",outcome=\"answered\"}", 4),
        ("attempts_total{upstream=\"o\",outcome=\"connect_failed\"}", retried),
        ("connect_failures_total{upstream=\"o\"}", retried),
        ("retries_total{upstream=\"o\",reason=\"connect\"}", retried),
    ] {
        assert_eq!(gateway.number(&format!("tollhouse_upstream_{series}")).await, number, "{series}");
    }
}

#[tokio::test]
async fn the_log_has_the_time_of_the_upstream_and_not_that_of_a_slow_client() {
    // More than sockets hold, so that it is not all sent before the client reads it.
    const LENGTH: usize = 64 << 20;
    const PAUSE: Duration = Duration::from_millis(300);
    let head = format!("HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-length: {LENGTH}\r\n\r\n");
    let origin = Origin::answering([head.as_bytes(), &vec![b'x'; LENGTH]].concat()).await;
    let gateway = Gateway::start(&document(&[&origin], "retries: {max: 1}", "{}")).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /slow HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    let head = client.head().await.expect("a head");
    tokio::time::sleep(PAUSE).await;
    assert_eq!(client.body(&head).await.map(|body| body.len()), Ok(LENGTH));
    let line = gateway.log_line(|line| line["path"] == "/slow").await;
    let [upstream, all] = ["upstream_ms", "elapsed_ms"].map(|field| line[field].as_f64().expect("a number"));
    assert!(all - upstream > 0.9 * PAUSE.as_secs_f64() * 1e3, "{line}");
}

#[tokio::test]
async fn a_fill_gives_up_an_attempt_in_time_for_the_next_one() {
    let (silent, _events) = Origin::silent().await;
    let good = Origin::answering(numbered(1, FRESH)).await;
    let rules = "retries: {max: 1, conditions: [reset], per_try: 100ms}";
    let gateway = Gateway::start(&document(&[&silent, &good], rules, "{}")).await;
    for path in ["/a", "/b", "/c", "/d"] {
        assert_eq!(get(gateway.address(), path).await.status, 200, "{path}");
    }
    let alone = "retries: {max: 0, per_try: 100ms}, timeouts: {read: 1h}";
    let gateway = Gateway::start(&document(&[&silent], alone, "{}")).await;
    let late = get(gateway.address(), "/").await;
    assert_eq!((late.status, late.problem().as_str()), (504, "upstream-timeout"));
    assert!(late.text().contains("per-try timeout"), "{}", late.text());
}

#[tokio::test]
async fn a_fill_goes_to_the_clients_backend_and_what_is_stored_sets_no_cookie() {
    let answers = |name: &'static str| {
        Origin::new(move |mut wire| async move {
            while let Ok(head) = wire.head().await {
                let control = if head.target().starts_with("/own") { "no-store" } else { "max-age=60" };
                wire.send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncache-control: {control}\r\n\r\n{name}"
                ))
                .await;
            }
        })
    };
    let (one, two) = (answers("one").await, answers("two").await);
    let rules = "balance: {sticky: {cookie: lb, secret: s3cret}}";
    let gateway = Gateway::start(&document(&[&one, &two], rules, "{}")).await;
    let own = get(gateway.address(), "/own").await;
    let cookie = own.field("set-cookie").and_then(|set| set.split(';').next()).expect("a cookie").to_owned();
    let home = own.text();
    for path in 0..6 {
        let fields = format!("cookie: {cookie}\r\n");
        let answer = request(gateway.address(), &format!("GET /shared/{path}"), &fields).await;
        assert_eq!((answer.text(), answer.field("set-cookie")), (home.clone(), None), "{path}");
        let own = request(gateway.address(), &format!("GET /own/{path}"), &fields).await;
        assert_eq!((own.text(), own.field("set-cookie")), (home.clone(), None), "it has that cookie");
    }
    for path in 0..6 {
        let answer = get(gateway.address(), &format!("/stored/{path}")).await;
        assert_eq!(answer.field("set-cookie"), None, "stored for all");
    }
}

#[tokio::test]
async fn a_fill_gives_its_place_in_a_queue_back_when_all_who_wait_for_it_left() {
    let (origin, mut taken) = Origin::handing_over().await;
    let rules = "concurrency: {in_flight: 1, queue: 1, max_wait: 60s}";
    let gateway = Gateway::administered(&document(&[&origin], rules, "{wait: 60s}")).await;
    let client = async |path: &str| {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: example.test\r\n\r\n")).await;
        client
    };
    let waiting = async |count: u64| {
        let number = "tollhouse_upstream_waiting{upstream=\"o\"}";
        soon("so many wait", async { while gateway.number(number).await != count {} }).await;
    };
    let mut first = client("/1").await;
    let mut at_origin = soon("the first", taken.recv()).await.expect("a connection");
    at_origin.head().await.expect("a request");
    let leader = client("/2").await;
    waiting(1).await;
    let other = client("/2").await;
    let busy = get(gateway.address(), "/3").await;
    assert_eq!((busy.status, busy.problem().as_str()), (503, "upstream-busy"));
    drop(leader);
    drop(other);
    waiting(0).await;
    let mut last = client("/4").await;
    waiting(1).await;
    at_origin.send(numbered(1, FRESH)).await;
    assert_eq!(first.answer().await.expect("an answer").text(), "answer 1");
    let head = soon("the next one", at_origin.head()).await.expect("a request");
    assert_eq!(head.target(), "/4", "nobody wants /2 any more");
    at_origin.send(numbered(2, FRESH)).await;
    assert_eq!(last.answer().await.expect("an answer").text(), "answer 2");
    let line = gateway.log_line(|line| line["path"] == "/4").await;
    assert!(line["throttled_ms"].is_number(), "{line}");
}

#[tokio::test]
async fn of_two_that_ask_anew_the_later_answer_stays_though_the_other_is_whole_last() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = Gateway::start(&document(&[&origin], "retries: {max: 0}", "{}")).await;
    let client = async || {
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: example.test\r\nCache-Control: no-cache\r\n\r\n").await;
        client
    };
    let mut first = client().await;
    let mut at_first = soon("the first", taken.recv()).await.expect("a connection");
    at_first.head().await.expect("a request");
    at_first.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n{FRESH}\r\nansw")).await;
    let head = first.head().await.expect("a head");
    // Which of two came later is known by the millisecond.
    let came = Instant::now();
    until("another one", || (came.elapsed() >= Duration::from_millis(1)).then_some(())).await;
    let mut second = client().await;
    let mut at_second = soon("the second", taken.recv()).await.expect("a connection");
    at_second.head().await.expect("a request");
    at_second.send(numbered(2, FRESH)).await;
    assert_eq!(second.answer().await.expect("an answer").text(), "answer 2");
    at_first.send("er 1").await;
    assert_eq!(first.body(&head).await.expect("whole"), b"answer 1");
    assert_eq!(get(gateway.address(), "/").await.text(), "answer 2");
}

#[tokio::test]
async fn what_is_stale_is_served_where_a_breaker_refuses_as_rfc_5861_s4_says() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let origin = Origin::new(move |mut wire| {
        let count = count.clone();
        async move {
            while wire.head().await.is_ok() {
                let nth = count.fetch_add(1, Ordering::SeqCst) + 1;
                let stale = "cache-control: max-age=60, stale-if-error=600\r\nage: 90\r\netag: \"v\"\r\n";
                wire.send(if nth <= 2 { numbered(nth, stale) } else { SERVER_ERROR.to_owned() }).await;
            }
        }
    })
    .await;
    let rules = "circuit_breaker: {min_requests: 4, error_ratio: 50%, open: 1h}";
    let gateway = Gateway::start(&document(&[&origin], rules, "{stale_if_unreachable: 0s}")).await;
    for (path, text) in [("/a", "answer 1"), ("/b", "answer 2"), ("/a", "answer 1"), ("/a", "answer 1")] {
        assert_eq!(get(gateway.address(), path).await.text(), text, "{path}");
    }
    gateway.says("a circuit breaker opened").await;
    for (path, text) in [("/a", "answer 1"), ("/b", "answer 2")] {
        let answer = get(gateway.address(), path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, text));
        assert!(answer.field("cache-status").is_some_and(|status| status.contains("stale-if-error")));
    }
    let refused = get(gateway.address(), "/c").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "circuit-open"));
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    let line = gateway.log_line(|line| line["path"] == "/c").await;
    assert_eq!(line["error"], "circuit-open", "{line}");
    assert_eq!(line["cache"], "fwd=uri-miss; detail=circuit-open");
}

#[tokio::test]
async fn what_answers_behind_the_cache_is_in_the_log() {
    let filters = "[cache: {}, respond: {status: 403, body: mine}]";
    let cached = Cached::with(filters, |nth, _| numbered(nth, FRESH)).await;
    assert_eq!(cached.get("/").await.status, 403);
    let line = cached.gateway.log_line(|line| line["path"] == "/").await;
    assert_eq!((&line["status"], &line["denied_by"]), (&403.into(), &"respond".into()), "{line}");
}

/// A cache before an origin that is asked with tokens of this issuer, by these further options. It stores what is stale at
/// once and served meanwhile; `/refused` has the token forgotten.
async fn with_tokens(issuer: &Origin, options: &str) -> Cached {
    let grant = format!(
        "token_url: 'http://{}/token', client_id: gw, client_secret: s3cret{options}",
        issuer.address
    );
    let filters = format!("[upstream_auth: {{client_credentials: {{{grant}}}}}, cache: {{}}]");
    Cached::with(&filters, |nth, head| match head.target() {
        "/refused" => "HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => {
            let control = "cache-control: public, max-age=10, stale-while-revalidate=600";
            numbered(nth, &format!("{control}\r\nage: 20\r\netag: \"v\"\r\n"))
        }
    })
    .await
}

#[tokio::test]
async fn what_is_served_meanwhile_does_not_fail_with_what_would_fetch_it_anew() {
    let asked = Arc::new(AtomicUsize::new(0));
    // Gives out one token.
    let issuer = Origin::new(move |mut wire| {
        let asked = asked.clone();
        async move {
            while let Ok(head) = wire.head().await {
                let Ok(_) = wire.body(&head).await else { return };
                let refused = r#"{"error": "invalid_client"}"#;
                let length = refused.len();
                wire.send(match asked.fetch_add(1, Ordering::SeqCst) {
                    0 => token(),
                    _ => format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {length}\r\n\r\n{refused}"),
                })
                .await;
            }
        }
    })
    .await;
    let cached = with_tokens(&issuer, "").await;
    assert_eq!(cached.get("/").await.text(), "answer 1");
    // After which there is no token any more.
    assert_eq!(cached.get("/refused").await.status, 401);
    assert_eq!((cached.get("/").await.text(), cached.asked()), ("answer 1".into(), 2));
    let lines = until("all lines", || Some(cached.gateway.log()).filter(|log| log.len() == 3)).await;
    for line in lines.iter().filter(|line| line["path"] == "/") {
        assert_eq!((&line["status"], line.get("denied_by")), (&200.into(), None), "{line}");
    }
}

#[tokio::test]
async fn what_is_served_meanwhile_waits_for_no_token_and_is_fetched_anew_once_there_is_one() {
    // Much longer than a stale answer waits for it.
    const SLOW: Duration = Duration::from_millis(500);
    let (let_go, may_go) = watch::channel(false);
    let asked = Arc::new(AtomicUsize::new(0));
    // Gives out one token, and nothing more until it is let go; then it takes its time.
    let issuer = Origin::new(move |mut wire| {
        let (asked, mut may_go) = (asked.clone(), may_go.clone());
        async move {
            while let Ok(head) = wire.head().await {
                let Ok(_) = wire.body(&head).await else { return };
                if asked.fetch_add(1, Ordering::SeqCst) > 0 {
                    let _ = may_go.wait_for(|may_go| *may_go).await;
                    tokio::time::sleep(SLOW).await;
                }
                wire.send(token()).await;
            }
        }
    })
    .await;
    let cached = with_tokens(&issuer, ", timeout: 1h").await;
    for path in ["/", "/other", "/refused"] {
        cached.get(path).await;
    }
    // There is no token any more.
    for (path, text) in [("/", "answer 1"), ("/other", "answer 2"), ("/", "answer 1")] {
        assert_eq!(cached.get(path).await.text(), text);
    }
    assert_eq!(cached.asked(), 3);
    let_go.send(true).expect("an issuer that waits");
    for (path, text) in [("/", "answer 1"), ("/other", "answer 2")] {
        soon(path, async { while cached.get(path).await.text() == text {} }).await;
    }
}

#[tokio::test]
async fn what_is_stale_is_served_where_there_is_no_place() {
    let (origin, mut taken) = Origin::handing_over().await;
    let rules = "concurrency: {in_flight: 1, queue: 0}";
    let gateway = Gateway::administered(&document(&[&origin], rules, "{}")).await;
    let client = async |path: &str| {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: example.test\r\n\r\n")).await;
        client
    };
    let mut first = client("/a").await;
    let mut at_origin = soon("the first", taken.recv()).await.expect("a connection");
    at_origin.head().await.expect("a request");
    let stale = "cache-control: max-age=60, stale-if-error=600\r\nage: 90\r\netag: \"v\"\r\n";
    at_origin.send(numbered(1, stale)).await;
    assert_eq!(first.answer().await.expect("an answer").text(), "answer 1");
    let _held = client("/held").await;
    let held = soon("the second", async {
        match at_origin.head().await {
            Ok(head) => head,
            // Its connection was not kept, or not yet.
            Err(_) => {
                at_origin = taken.recv().await.expect("a connection");
                at_origin.head().await.expect("a request")
            }
        }
    });
    assert_eq!(held.await.target(), "/held");
    assert_eq!(get(gateway.address(), "/a").await.text(), "answer 1");
    assert_eq!(get(gateway.address(), "/b").await.status, 503);
}

#[tokio::test]
async fn what_the_gateway_itself_proves_keeps_no_answer_from_all() {
    let filters = "[cache: {ttl: 30s}, upstream_auth: {basic: {username: gw, password: s3cret}}]";
    let cached = Cached::with(filters, |nth, _| numbered(nth, "")).await;
    for _ in 0..2 {
        assert_eq!(cached.get("/").await.text(), "answer 1");
    }
    // `gw:s3cret` in Base64.
    assert_eq!(cached.seen()[0].field("authorization"), Some("Basic Z3c6czNjcmV0"));
    // RFC 9111 s3.5: what who asks proves does.
    for nth in 2..4 {
        let own = cached.send("GET /own", "Authorization: Basic eDp5\r\n").await;
        assert_eq!(own.text(), format!("answer {nth}"));
    }
}

#[tokio::test]
async fn what_a_filter_behind_the_cache_proves_of_who_asks_keeps_an_answer_from_others() {
    let write = "headers: {request: {set: {authorization: 'Bearer ${cookie.token}'}}}";
    let cached = Cached::with(&format!("[cache: {{ttl: 30s}}, {write}]"), |nth, _| numbered(nth, "")).await;
    for (token, nth) in ["a", "b", "a"].into_iter().zip(1..) {
        let answer = cached.send("GET /", &format!("Cookie: token={token}\r\n")).await;
        // RFC 9111 s3.5: what is not said to be for all is for the one whose credentials the origin saw.
        assert_eq!(answer.text(), format!("answer {nth}"), "{token}");
        let proof = format!("Bearer {token}");
        assert_eq!(cached.seen()[nth - 1].field("authorization"), Some(proof.as_str()));
    }
}

#[tokio::test]
async fn nobody_waits_to_hear_from_an_origin_that_refuses_all_but_where_something_is_stored() {
    const REFUSED: &str = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    const STALE: &str = "cache-control: max-age=10\r\nage: 20\r\netag: \"v\"\r\nconnection: close\r\n";
    for is_stored in [false, true] {
        let (origin, mut taken) = Origin::handing_over().await;
        let rules = "retries: {max: 0}";
        let gateway = Gateway::administered(&document(&[&origin], rules, "{wait: 60s}")).await;
        let client = async || {
            let mut client = Wire::connect(gateway.address()).await;
            client.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
            client
        };
        let mut asked = async || {
            let mut wire = soon("a connection", taken.recv()).await.expect("a connection");
            wire.head().await.expect("a request");
            wire
        };
        if is_stored {
            let mut first = client().await;
            asked().await.send(numbered(1, STALE)).await;
            assert_eq!(first.answer().await.expect("an answer").text(), "answer 1");
        }
        let mut refused = client().await;
        asked().await.send(REFUSED).await;
        assert_eq!(refused.answer().await.expect("an answer").status, 429);
        let mut both = [client().await, client().await];
        let in_flight = "tollhouse_requests_in_flight";
        soon("both", async { while gateway.number(in_flight).await != 2 {} }).await;
        let mut at_origin = vec![asked().await];
        if !is_stored {
            at_origin.push(asked().await);
        }
        for wire in &mut at_origin {
            wire.send(numbered(2, FRESH)).await;
        }
        for client in &mut both {
            assert_eq!(soon("an answer", client.answer()).await.expect("one").text(), "answer 2");
        }
    }
}
