//! The filter `cache` before scripted origins: who waits for whom, who shares with whom, and who may purge.

mod urls;
mod validation;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cached::{Cached, numbered};
use crate::harness::{Gateway, H2c, Hash, Origin, Wire, get, request, soon, until};

const FRESH: &str = "cache-control: max-age=3600\r\n";

fn before(origin: &Origin, filters: &str) -> String {
    format!(
        "upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: a, upstream: o, filters: {filters}}}]",
        origin.address
    )
}

/// Clients that have asked. None reads yet, so that none waits for as long as all of them take to come.
async fn herd(gateway: &Gateway, clients: usize) -> Vec<Wire> {
    let mut herd = Vec::with_capacity(clients);
    for _ in 0..clients {
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
        herd.push(client);
    }
    herd
}

#[tokio::test]
async fn a_herd_on_a_cold_key_makes_one_request() {
    const CLIENTS: usize = 1000;
    let (origin, mut asked) = Origin::handing_over().await;
    let gateway = Gateway::administered(&before(&origin, "[cache: {wait: 60s}]")).await;
    let mut herd = herd(&gateway, CLIENTS).await;
    let mut wire = soon("a request", asked.recv()).await.expect("one");
    wire.head().await.expect("a head");
    let connected = "tollhouse_connections{state=\"open\"}";
    soon("the herd", async { while gateway.number(connected).await != CLIENTS as u64 {} }).await;
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncache-control: max-age=60\r\n\r\nhel").await;
    wire.send("lo").await;
    for client in &mut herd {
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, "hello".into()));
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn an_answer_that_is_not_for_all_releases_those_who_wait_at_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (first, count) = (Arc::new(tokio::sync::Notify::new()), asked.clone());
    let release = first.clone();
    let origin = Origin::new(move |mut wire| {
        let (count, release) = (count.clone(), release.clone());
        async move {
            while wire.head().await.is_ok() {
                let nth = count.fetch_add(1, Ordering::SeqCst) + 1;
                if nth == 1 {
                    release.notified().await;
                    // The head says that it is private; its body never ends.
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 99\r\ncache-control: private\r\n\r\n")
                        .await;
                    wire.rest().await;
                    return;
                }
                wire.send(numbered(nth, "cache-control: private\r\n")).await;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&before(&origin, "[cache: {wait: 60s}]")).await;
    let mut leader = Wire::connect(gateway.address()).await;
    leader.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    until("the first request", || (asked.load(Ordering::SeqCst) == 1).then_some(())).await;
    let mut others = herd(&gateway, 20).await;
    first.notify_one();
    for other in &mut others {
        let answer = other.answer().await.expect("an answer");
        assert!(answer.text().starts_with("answer "));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 21, "each asks for itself");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_nothing_from_the_others() {
    let (origin, mut asked) = Origin::handing_over().await;
    let gateway = Gateway::start(&before(&origin, "[cache: {wait: 60s}]")).await;
    let mut leader = Wire::connect(gateway.address()).await;
    leader.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    let mut wire = soon("a request", asked.recv()).await.expect("one");
    wire.head().await.expect("a head");
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\ncache-control: max-age=60\r\n\r\nhello").await;
    leader.some().await;
    leader.reset();
    let address = gateway.address();
    let other = tokio::spawn(async move { request(address, "GET /", "").await });
    wire.send("world").await;
    let answer = soon("the answer", other).await.expect("no panic");
    assert_eq!(answer.text(), "helloworld");
    assert_eq!((request(address, "GET /", "").await.text(), origin.connections()), ("helloworld".into(), 1));
}

#[tokio::test]
async fn a_client_that_reads_nothing_keeps_nobody_waiting() {
    const LENGTH: usize = 4 << 20;
    let origin = Origin::new(|mut wire| async move {
        while wire.head().await.is_ok() {
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n{FRESH}\r\n")).await;
            wire.send(vec![b'x'; LENGTH]).await;
        }
    })
    .await;
    let gateway = Gateway::start(&before(&origin, "[cache: {}]")).await;
    let mut slow = Wire::connect(gateway.address()).await;
    slow.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    until("the fill", || (origin.connections() == 1).then_some(())).await;
    let answer = soon("the whole", request(gateway.address(), "GET /", "")).await;
    assert_eq!((answer.body.len(), origin.connections()), (LENGTH, 1));
    drop(slow);
}

#[tokio::test]
async fn what_is_larger_than_may_be_goes_through_whole_and_is_not_stored() {
    const LENGTH: usize = 1 << 20;
    for framing in ["length", "chunks"] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let origin = Origin::new(move |mut wire| {
            let count = count.clone();
            async move {
                while wire.head().await.is_ok() {
                    count.fetch_add(1, Ordering::SeqCst);
                    let body = vec![b'x'; LENGTH];
                    if framing == "length" {
                        wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n{FRESH}\r\n"))
                            .await;
                        wire.send(body).await;
                    } else {
                        wire.send(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{FRESH}\r\n"))
                            .await;
                        wire.send([format!("{LENGTH:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat())
                            .await;
                    }
                }
            }
        })
        .await;
        let gateway = Gateway::start(&before(&origin, "[cache: {max_object: 64KiB}]")).await;
        for nth in 1..=2 {
            let answer = request(gateway.address(), "GET /", "").await;
            assert_eq!((answer.body.len(), asked.load(Ordering::SeqCst)), (LENGTH, nth), "{framing}");
        }
    }
}

#[tokio::test]
async fn filters_before_the_cache_run_for_every_request_and_those_behind_it_for_the_origins_answer() {
    let filters = "[headers: {response: {set: {x-outer: '${request.id}'}}}, cache: {}, \
                   headers: {request: {set: {x-inner: '1'}}, response: {set: {x-inner: '${request.id}'}}}]";
    let cached = Cached::with(filters, |nth, _| numbered(nth, FRESH)).await;
    let (one, two) = (cached.get("/").await, cached.get("/").await);
    assert_eq!(cached.seen().len(), 1);
    assert_eq!(cached.seen()[0].field("x-inner"), Some("1"));
    assert_eq!(one.field("x-inner"), two.field("x-inner"), "what it made is stored");
    assert!(one.field("x-outer").is_some() && one.field("x-outer") != two.field("x-outer"));
}

#[tokio::test]
async fn what_filters_behind_the_cache_make_of_bodies_is_stored() {
    let filters = "[cache: {}, compress: {min_size: 0B, algorithms: [gzip], types: ['text/*']}]";
    let cached = Cached::with(filters, |nth, _| {
        numbered(nth, "cache-control: max-age=60\r\ncontent-type: text/plain\r\n")
    })
    .await;
    for _ in 0..2 {
        let coded = cached.send("GET /", "Accept-Encoding: gzip\r\n").await;
        assert_eq!((coded.field("content-encoding"), &coded.body[..2]), (Some("gzip"), &[0x1f, 0x8b][..]));
        assert_eq!(cached.send("GET /", "").await.text(), "answer 2");
    }
    assert_eq!(cached.asked(), 2);
}

#[tokio::test]
async fn an_inner_filters_own_answer_is_not_stored() {
    let filters = "[cache: {ttl: 60s}, respond: {status: 200, body: mine}]";
    let cached = Cached::with(filters, |nth, _| numbered(nth, FRESH)).await;
    for _ in 0..2 {
        let answer = cached.get("/").await;
        assert_eq!(
            (answer.text(), answer.field("cache-status")),
            ("mine".into(), Some("tollhouse; fwd=uri-miss; detail=filter"))
        );
    }
    assert_eq!(cached.asked(), 0);
}

#[tokio::test]
async fn requests_that_are_not_what_they_seem_poison_nothing() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, FRESH)).await;
    let poisons = [
        ("GET /", "Content-Length: 3\r\n\r\nx=1"),
        ("GET /", "X-Host: evil.test\r\n"),
        ("GET /", "X-Original-URL: /evil\r\n"),
        ("GET /", "X-HTTP-Method-Override: DELETE\r\n"),
        ("HEAD /", ""),
        ("GET /", "Range: bytes=0-1\r\n"),
    ];
    for (line, fields) in poisons {
        let bytes = format!("{line} HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n{fields}\r\n");
        let mut wire = Wire::connect(cached.gateway.address()).await;
        wire.send(bytes).await;
        let _ = wire.answer_to(line.split(' ').next().unwrap_or_default()).await;
    }
    let before = cached.asked();
    let clean = cached.get("/").await;
    assert_eq!(
        (clean.text(), cached.asked()),
        (format!("answer {}", before + 1), before + 1),
        "nothing was there"
    );
    assert_eq!(cached.get("/").await.text(), clean.text());
    let other = request(cached.gateway.address(), "GET http://other.test/", "").await;
    assert_ne!(other.text(), clean.text(), "another host than `Host` says");
}

#[tokio::test]
async fn hosts_do_not_share_and_neither_do_routes() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
         chains: {{c: [cache: {{ttl: 60s}}]}}\n\
         routes:\n\
         - {{name: a, match: {{headers: {{x-a: '1'}}}}, upstream: o, filters: [{{chain: c}}]}}\n\
         - {{name: b, upstream: o, filters: [{{chain: c}}]}}",
        origin.address
    ))
    .await;
    let mut wire = Wire::connect(gateway.address()).await;
    for fields in ["Host: one.test", "Host: two.test", "Host: one.test:81", "Host: one.test\r\nX-A: 1"] {
        wire.send(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")).await;
        let status = wire.answer().await.expect("an answer");
        assert_eq!(status.field("cache-status"), Some("tollhouse; fwd=uri-miss; stored"), "{fields}");
    }
    assert_eq!(origin.heads().len(), 4);
}

#[tokio::test]
async fn callers_that_are_known_do_not_share_unless_they_are_told_to() {
    let hash = |key: &str| {
        let mut hash = Hash::default();
        hash.add(key.as_bytes());
        hash.hex()
    };
    let hashes = ["acme", "globex"].map(|name| hash(&format!("key-of-{name}-0123456789")));
    let rest = |options: &str, origin: &Origin| {
        format!(
            "identities: {{keys: {{type: api_key, from: [header:x-api-key], hide: true}}}}\n\
             consumers:\n\
             - {{name: acme, credentials: [{{type: api_key, id: a, hash: 'sha256:{}'}}]}}\n\
             - {{name: globex, credentials: [{{type: api_key, id: g, hash: 'sha256:{}'}}]}}\n\
             upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: a, upstream: o, filters: [authenticate: {{any_of: [keys]}}, cache: {options}]}}]",
            hashes[0], hashes[1], origin.address
        )
    };
    for (options, asked) in [("{ttl: 60s}", 2), ("{ttl: 60s, shared: true}", 1)] {
        let origin = Origin::echo().await;
        let gateway = Gateway::start(&rest(options, &origin)).await;
        for key in ["acme", "globex", "acme", "globex"] {
            let fields = format!("X-Api-Key: key-of-{key}-0123456789\r\n");
            assert_eq!(request(gateway.address(), "GET /", &fields).await.status, 200);
        }
        assert_eq!(request(gateway.address(), "GET /", "").await.status, 401, "the cache lets nobody in");
        assert_eq!(origin.heads().len(), asked, "{options}");
    }
}

#[tokio::test]
async fn both_ways_answer_from_the_same_store() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, FRESH)).await;
    let direct = cached.get("/").await;
    let request = http::Request::get("http://example.test/").body(()).expect("valid");
    let proxied = H2c::connect(cached.gateway.address()).await.send(request, b"").await.expect("an answer");
    assert_eq!((proxied.body, cached.asked()), (direct.body, 1));
    let status = proxied.headers.get("cache-status").map(|status| status.as_bytes()).unwrap_or_default();
    assert!(status.starts_with(b"tollhouse; hit"));
}

#[tokio::test]
async fn something_is_stored_once_it_is_asked_for_often_enough() {
    let cached = Cached::new("{min_uses: 3}", |nth, _| numbered(nth, FRESH)).await;
    for answer in [1, 2, 3, 3] {
        assert_eq!(cached.get("/").await.text(), format!("answer {answer}"));
    }
}

#[tokio::test]
async fn only_the_admin_purges_and_looks_things_up() {
    let cached =
        Cached::new("{tags: ['t-${request.path}']}", |nth, head| match head.field("if-none-match") {
            Some(_) => "HTTP/1.1 304 Not Modified\r\ncache-control: max-age=60\r\n\r\n".into(),
            None => numbered(nth, "cache-control: max-age=3600\r\netag: \"v\"\r\n"),
        })
        .await;
    let gateway = &cached.gateway;
    let purge =
        async |wish: &str| gateway.ask_admin("POST /api/cache/purge", wish).await.json()["purged"].as_u64();
    let asked = async |path: &str| {
        let before = cached.asked();
        cached.get(path).await;
        cached.asked() - before
    };
    for path in ["/a", "/b", "/c/1", "/c/2"] {
        assert_eq!(asked(path).await, 1);
    }
    let look = gateway.ask_admin("GET /api/cache/lookup?url=http://example.test/a", "").await.json();
    assert_eq!(look["stored"][0]["status"], 200);
    assert_eq!(look["stored"][0]["serves"], "yes");
    assert_eq!(look["stored"][0]["tags"][0], "t-/a");
    assert_eq!(purge(r#"{"url": "http://example.test/a"}"#).await, Some(1));
    assert_eq!((asked("/a").await, asked("/b").await), (1, 0));
    assert_eq!(purge(r#"{"prefix": "http://example.test/c/"}"#).await, Some(2));
    assert_eq!((asked("/c/1").await, asked("/c/2").await), (1, 1));
    assert_eq!(purge(r#"{"tag": "t-/b", "soft": true}"#).await, Some(1));
    cached.get("/b").await;
    assert_eq!(
        cached.seen().last().and_then(|head| head.field("if-none-match")),
        Some("\"v\""),
        "it is validated"
    );
    assert_eq!(purge(r#"{"all": true}"#).await, Some(4));
    let numbers = gateway.ask_admin("GET /api/cache", "").await.json();
    assert_eq!((numbers["entries"].as_u64(), numbers["purged"].as_u64()), (Some(0), Some(8)));
    for wish in ["{}", r#"{"url": "example.test"}"#, r#"{"all": true, "tag": "x"}"#] {
        assert_eq!(gateway.ask_admin("POST /api/cache/purge", wish).await.status, 422, "{wish}");
    }
}

#[tokio::test]
async fn what_is_purged_while_it_comes_in_is_not_stored() {
    // Nobody can wait for the second one.
    for fields in ["", "Cache-Control: no-cache\r\n"] {
        let (origin, mut asked) = Origin::handing_over().await;
        let gateway = Gateway::administered(&before(&origin, "[cache: {}]")).await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: example.test\r\n{fields}\r\n")).await;
        let mut wire = soon("a request", asked.recv()).await.expect("one");
        wire.head().await.expect("a head");
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncache-control: max-age=60\r\n\r\nol").await;
        let head = client.head().await.expect("a head");
        gateway.ask_admin("POST /api/cache/purge", r#"{"url": "http://example.test/"}"#).await;
        wire.send("d!").await;
        assert_eq!(client.body(&head).await.expect("whole"), b"old!");
        let look = gateway.ask_admin("GET /api/cache/lookup?url=http://example.test/", "");
        assert_eq!(look.await.json()["stored"], serde_json::json!([]), "{fields}");
    }
}

#[tokio::test]
async fn a_reload_keeps_what_is_stored_and_may_change_how_much() {
    let origin = Origin::echo().await;
    let rest = |memory: &str| {
        format!("server: {{cache: {{memory: {memory}}}}}\n{}", before(&origin, "[cache: {ttl: 60s}]"))
    };
    let gateway = Gateway::administered(&rest("64MiB")).await;
    get(gateway.address(), "/").await;
    gateway.rewrite_administered(&rest("32MiB"));
    gateway.ask_admin("POST /api/reload", "").await;
    let numbers = gateway.ask_admin("GET /api/cache", "").await.json();
    assert_eq!((numbers["entries"].as_u64(), numbers["capacity"].as_u64()), (Some(1), Some(32 << 20)));
    get(gateway.address(), "/").await;
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test]
async fn the_cache_is_counted_by_route() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, FRESH)).await;
    cached.get("/").await;
    cached.get("/").await;
    cached.send("GET /", "Cache-Control: no-store\r\n").await;
    cached.gateway.log_line(|line| line["cache"] == "fwd=bypass; detail=request-no-store").await;
    let metrics = cached.gateway.ask_admin("GET /metrics", "").await.text();
    for line in [
        "tollhouse_cache_requests_total{result=\"hit\",route=\"all\"} 1",
        "tollhouse_cache_requests_total{result=\"miss\",route=\"all\"} 1",
        "tollhouse_cache_requests_total{result=\"bypass\",route=\"all\"} 1",
        "tollhouse_cache_bypassed_total{reason=\"request-no-store\",route=\"all\"} 1",
        "tollhouse_cache_fills_total{result=\"stored\"} 1",
        "tollhouse_cache_served_bytes_total{route=\"all\"} 8",
        "tollhouse_cache_entries 1",
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn interim_answers_pass_and_are_not_stored() {
    let cached = Cached::new("{}", |nth, _| {
        format!("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n{}", numbered(nth, FRESH))
    })
    .await;
    let mut wire = Wire::connect(cached.gateway.address()).await;
    wire.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    let early = wire.head().await.expect("an interim head");
    assert!(early.line.contains("103") && early.field("link") == Some("</a.css>"), "{early:?}");
    let answer = wire.answer().await.expect("an answer");
    assert_eq!((answer.text(), answer.field("link")), ("answer 1".into(), None));
    wire.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    let again = wire.answer().await.expect("an answer");
    assert_eq!((again.status, again.text(), cached.asked()), (200, "answer 1".into(), 1));
}

#[tokio::test]
async fn what_may_no_longer_be_stored_takes_what_was_with_it() {
    let cached = Cached::new("{}", |nth, _| match nth {
        1 => numbered(
            nth,
            "cache-control: max-age=10, stale-while-revalidate=60\r\nage: 20\r\netag: \"v\"\r\n",
        ),
        _ => numbered(nth, "cache-control: private\r\n"),
    })
    .await;
    cached.get("/").await;
    assert_eq!(cached.get("/").await.text(), "answer 1", "while it is fetched anew");
    let gone = async {
        while cached.get("/").await.text() == "answer 1" {
            tokio::task::yield_now().await;
        }
    };
    soon("its end", gone).await;
}

#[tokio::test]
async fn versions_and_variants_share_nothing() {
    let says = |text: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n{FRESH}\r\n{text}");
    let (one, two) = (Origin::answering(says("one")).await, Origin::answering(says("two")).await);
    let document = format!(
        "upstreams:\n  - {{name: one, backends: [{{address: \"{}\"}}]}}\n  - {{name: two, backends: [{{address: \"{}\"}}]}}\n\
         services:\n  - name: api\n    filters: [cache: {{}}]\n    \
         versioning: {{from: [path, \"header:x-api\"], default: \"1\"}}\n    \
         versions: {{\"1\": {{upstream: one}}, \"2\": {{upstream: two}}}}\n\
         routes:\n  - {{name: api, service: api, match: {{paths: [/a]}}}}\n  \
         - {{name: split, match: {{paths: [/s]}}, filters: [cache: {{}}], \
         split: {{to: {{one: 1, two: 0}}, force: {{header: x-variant}}}}}}\n",
        one.address, two.address
    );
    let gateway = Gateway::start(&document).await;
    for round in 0..2 {
        for (line, fields, text) in [
            ("GET /v1/a", "", "one"),
            ("GET /v2/a", "", "two"),
            ("GET /a", "x-api: 2\r\n", "two"),
            ("GET /a", "", "one"),
            ("GET /s", "x-variant: two\r\n", "two"),
            ("GET /s", "", "one"),
        ] {
            let answer = request(gateway.address(), line, fields).await;
            assert_eq!(answer.text(), text, "{line} {fields}");
            let vary = answer.field("vary").unwrap_or_default().matches("x-api").count();
            assert!(vary <= 1, "said once: {answer:?}");
            if round > 0 {
                let hit = answer.field("cache-status").is_some_and(|status| status.contains("; hit"));
                assert!(hit, "{line} {fields}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_varies_by_what_the_gateway_writes_is_not_stored_as_rfc_9111_s4_1_says() {
    for name in ["x-forwarded-for", "forwarded", "x-consumer"] {
        let filters = "[headers: {request: {set: {x-consumer: gold}}}, cache: {shared: true}, \
                       headers: {request: {set: {x-consumer: silver}}}]";
        let vary = format!("{FRESH}vary: {name}\r\n");
        let cached = Cached::with(filters, move |nth, _| numbered(nth, &vary)).await;
        assert_eq!(cached.get("/").await.text(), "answer 1");
        assert_eq!(cached.get("/").await.text(), "answer 2", "{name}");
    }
}
