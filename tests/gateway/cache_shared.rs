//! Gateways that tell each other of purges, over a real Redis that is killed and started again.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::cached::{Cached, numbered};
use crate::harness::{Head, Redis, soon, until};

const FIELDS: &str = "cache-control: max-age=3600\r\netag: \"v\"\r\n";
const FILTERS: &str = "[cache: {tags: ['t-${request.path}'], purge: {token: secret-of-purging}}]";

const GAPS: &str = "tollhouse_cache_shared_gaps_total";

/// A gateway with a cache before an origin of its own, which shares purges.
async fn sharing(redis: &Redis, server: &str) -> Cached {
    sharing_what(redis, server, validated).await
}

/// The same, before an origin that answers so.
async fn sharing_what(
    redis: &Redis,
    server: &str,
    answer: impl Fn(usize, &Head) -> String + Send + Sync + 'static,
) -> Cached {
    Cached::routed(&format!("store: main{server}"), &rest(redis, ""), answer).await
}

/// What the document has besides, with this in the store.
fn rest(redis: &Redis, store: &str) -> String {
    format!(
        "stores: {{main: {{type: redis, url: \"{}\", timeout: 1s{store}}}}}\n\
         routes: [{{name: all, match: {{paths: [/*]}}, upstream: o, filters: {FILTERS}}}]\n",
        redis.url()
    )
}

/// An answer that can be validated, and is.
fn validated(nth: usize, head: &Head) -> String {
    match head.field("if-none-match") {
        Some(_) => format!("HTTP/1.1 304 Not Modified\r\n{FIELDS}\r\n"),
        None => numbered(nth, FIELDS),
    }
}

async fn purge(cached: &Cached, wish: Value) -> Value {
    cached.gateway.ask_admin("POST /api/cache/purge", &wish.to_string()).await.json()
}

/// How often the origin is asked when this is.
async fn asks(cached: &Cached, path: &str) -> usize {
    let before = cached.asked();
    assert_eq!(cached.get(path).await.status, 200);
    cached.asked() - before
}

/// Waits until a number of the metrics is so high.
async fn counts(cached: &Cached, name: &str, least: u64) {
    let counted = async {
        loop {
            let page = cached.gateway.ask_admin("GET /metrics", "").await.text();
            let line = page.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if line.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) >= least {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(name, counted).await;
}

async fn received(cached: &Cached, purges: u64) {
    counts(cached, "tollhouse_cache_shared_purges_total{way=\"received\"}", purges).await;
}

#[tokio::test]
async fn what_one_gateway_purges_all_purge() {
    let redis = Redis::start().await;
    let (one, two) = (sharing(&redis, "").await, sharing(&redis, "").await);
    for path in ["/a", "/b/1", "/b/2", "/c", "/d"] {
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (1, 1));
    }
    let done = purge(&one, json!({"url": "http://example.test/a"})).await;
    assert_eq!(done, json!({"purged": 1, "shared": true}));
    assert_eq!(purge(&two, json!({"prefix": "http://example.test/b/"})).await["purged"], 2);
    received(&one, 1).await;
    assert_eq!(purge(&one, json!({"tag": "t-/c"})).await["purged"], 1);
    let fields = "Authorization: Bearer secret-of-purging\r\n";
    let answer = one.send("PURGE /d", fields).await;
    assert_eq!(answer.text(), "{\"purged\":1,\"shared\":true}\n");
    received(&two, 3).await;
    for path in ["/a", "/b/1", "/b/2", "/c", "/d"] {
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (1, 1), "{path}");
    }
    // One's own purges come back too, and must not take out what was stored since.
    assert_eq!(purge(&two, json!({"all": true, "soft": true})).await, json!({"purged": 5, "shared": true}));
    received(&one, 2).await;
    for path in ["/a", "/b/1", "/b/2", "/c", "/d"] {
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (1, 1), "{path} is validated");
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (0, 0), "{path}");
    }
    for cached in [&one, &two] {
        assert_eq!(cached.numbers().await["shared"], json!({"store": "main", "late": 0}));
    }
}

#[tokio::test]
async fn a_redis_that_is_away_fails_no_purge_and_what_was_missed_leaves_nothing_fresh() {
    let mut redis = Redis::start().await;
    let (one, two) = (sharing(&redis, "").await, sharing(&redis, "").await);
    for path in ["/a", "/b"] {
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (1, 1));
    }
    redis.kill();
    let done = purge(&one, json!({"url": "http://example.test/a"})).await;
    assert_eq!(done, json!({"purged": 1, "shared": false}), "it says that others do not know");
    assert_eq!(one.numbers().await["shared"]["late"], 1);
    assert_eq!((asks(&one, "/a").await, asks(&two, "/a").await), (1, 0), "nobody could tell the other one");
    redis.restart().await;
    // What it lost nobody knows, so all is in doubt; and what could not be told is told.
    for cached in [&one, &two] {
        counts(cached, GAPS, 1).await;
    }
    received(&two, 1).await;
    assert_eq!(asks(&two, "/a").await, 1);
    assert_eq!(
        two.seen().last().and_then(|head| head.field("if-none-match").map(str::to_owned)),
        None,
        "it is gone"
    );
    assert_eq!((asks(&one, "/b").await, asks(&two, "/b").await), (1, 1));
    assert_eq!(
        two.seen().last().and_then(|head| head.field("if-none-match")),
        Some("\"v\""),
        "it is validated"
    );
    assert_eq!((asks(&one, "/b").await, asks(&two, "/b").await), (0, 0));
    // And it goes on as before.
    let mut done = purge(&two, json!({"tag": "t-/b"})).await;
    assert_eq!(done["purged"], 1);
    let told = async {
        // The connection that it speaks on may be back later than the one that it reads on.
        while done["shared"] != true {
            tokio::time::sleep(Duration::from_millis(5)).await;
            done = purge(&two, json!({"tag": "t-/b"})).await;
        }
    };
    soon("a purge that all know of", told).await;
    received(&one, 1).await;
    assert_eq!(asks(&one, "/b").await, 1);
}

#[tokio::test]
async fn what_was_purged_while_a_connection_was_down_is_purged_when_it_is_back() {
    let redis = Redis::start().await;
    let (one, two) = (sharing(&redis, "").await, sharing(&redis, "").await);
    for path in ["/a", "/b"] {
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (1, 1));
    }
    // No connection of gateways lives for long, while one says something.
    for path in ["/a", "/b"] {
        let () = redis.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        let wish = json!({"url": format!("http://example.test{path}")});
        assert_eq!(purge(&one, wish).await["purged"], 1);
    }
    received(&two, 2).await;
    assert_eq!((asks(&two, "/a").await, asks(&two, "/b").await), (1, 1));
    let none = format!("{GAPS} 0\n");
    assert!(two.gateway.ask_admin("GET /metrics", "").await.text().contains(&none), "nothing was missed");
}

#[tokio::test]
async fn what_could_not_be_told_is_told_after_a_reload_that_mends_the_store() {
    let redis = Redis::with(&["--requirepass", "old"]).await;
    let folder = tempfile::TempDir::new().expect("a directory");
    let password = |gateway: &str, is: &str| {
        let file = folder.path().join(gateway);
        std::fs::write(&file, is).expect("written");
        rest(&redis, &format!(", password: \"${{file:{}}}\"", file.display()))
    };
    let one = Cached::routed("store: main", &password("one", "old"), validated).await;
    let two = Cached::routed("store: main", &password("two", "old"), validated).await;
    for path in ["/a", "/b"] {
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (1, 1));
    }
    redis.rotate("new");
    let done = purge(&one, json!({"url": "http://example.test/a"})).await;
    assert_eq!(done, json!({"purged": 1, "shared": false}));
    password("two", "new");
    two.reload("store: main").await;
    counts(&two, GAPS, 1).await;
    password("one", "new");
    one.reload("store: main").await;
    received(&two, 1).await;
    assert_eq!(asks(&two, "/a").await, 1);
    let seen = two.seen();
    assert_eq!(seen.last().and_then(|head| head.field("if-none-match")), None, "it is gone");
}

#[tokio::test]
async fn a_journal_that_is_too_short_or_nonsense_is_a_gap() {
    let redis = Redis::start().await;
    let two = sharing(&redis, "").await;
    assert_eq!(asks(&two, "/a").await, 1);
    let journal = "tollhouse:journal:purges";
    for (gaps, fields) in [(1, ["by", "x", "says", ""]), (2, ["by", "x", "says", "{\"what\":\"later\"}"])] {
        let _: String = redis.ask(&[&["XADD", journal, "*"][..], &fields].concat());
        counts(&two, GAPS, gaps).await;
        assert_eq!((asks(&two, "/a").await, asks(&two, "/a").await), (1, 0), "{fields:?}");
    }
    // Where it had been is gone.
    let _: String = redis.ask(&["XADD", journal, "MAXLEN", "1", "*", "by", "x", "says", "{}"]);
    counts(&two, GAPS, 3).await;
    let () = redis.ask(&["DEL", journal]);
    let url: Vec<u8> = b"http://example.test/none".to_vec();
    let says = json!({"what": {"url": url}, "how": "hard"}).to_string();
    let _: String = redis.ask(&["XADD", journal, "*", "by", "x", "says", &says]);
    counts(&two, GAPS, 4).await;
    received(&two, 1).await;
    assert_eq!((asks(&two, "/a").await, asks(&two, "/a").await), (1, 0));
}

#[tokio::test]
async fn after_a_gap_nothing_is_served_before_it_is_validated_whatever_may_be_stale() {
    let redis = Redis::start().await;
    let fields =
        "cache-control: max-age=3600, stale-while-revalidate=3600, stale-if-error=3600\r\netag: \"v\"\r\n";
    let two = sharing_what(&redis, "", move |nth, head| match head.field("if-none-match") {
        Some(_) if head.target() == "/down" => "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => numbered(nth, fields),
    })
    .await;
    let text = async |path: &str| two.get(path).await.text();
    for (path, expected) in [("/a", "answer 1"), ("/down", "answer 2"), ("/a", "answer 1")] {
        assert_eq!(text(path).await, expected);
    }
    // Whatever stood there may have been a purge of these.
    let _: String = redis.ask(&["XADD", "tollhouse:journal:purges", "*", "by", "x", "says", "lost"]);
    counts(&two, GAPS, 1).await;
    assert_eq!(text("/a").await, "answer 3", "not even one stale answer");
    assert_eq!(two.get("/down").await.status, 503, "nor in the place of an error");
    assert_eq!(text("/a").await, "answer 3");
    // What is only said to be stale may be.
    assert_eq!(purge(&two, json!({"url": "http://example.test/a", "soft": true})).await["purged"], 1);
    assert_eq!(text("/a").await, "answer 3", "while it is fetched anew");
}

#[tokio::test]
async fn after_a_restart_a_gateway_knows_on_disk_what_was_purged_meanwhile() {
    let redis = Redis::start().await;
    let folder = tempfile::TempDir::new().expect("a directory");
    let disk = format!(", disk: {{path: \"{}\", size: 1GiB}}", folder.path().display());
    let (one, two) = (sharing(&redis, "").await, sharing(&redis, &disk).await);
    for path in ["/a", "/b"] {
        assert_eq!((asks(&one, path).await, asks(&two, path).await), (1, 1));
    }
    two.counts("/disk/writes", 2).await;
    let mark = folder.path().join("mark");
    until("a mark", || mark.exists().then_some(())).await;
    let other = one.gateway.address();
    let two = two.restart(|| assert!(purge_by_hand(other).contains("\"shared\":true"))).await;
    assert_eq!((asks(&two, "/a").await, asks(&two, "/b").await), (1, 0));
}

#[tokio::test]
async fn what_was_said_since_is_news_although_something_before_it_may_be_lost() {
    let redis = Redis::start().await;
    let folder = tempfile::TempDir::new().expect("a directory");
    let disk = format!(", disk: {{path: \"{}\", size: 1GiB}}", folder.path().display());
    let two = sharing(&redis, &disk).await;
    assert_eq!((asks(&two, "/a").await, asks(&two, "/b").await), (1, 1));
    two.counts("/disk/writes", 2).await;
    let mark = folder.path().join("mark");
    until("a mark", || mark.exists().then_some(())).await;
    let (journal, url) = ("tollhouse:journal:purges", b"http://example.test/a".to_vec());
    let says = json!({"what": {"url": url}, "how": "hard"}).to_string();
    let meanwhile = || {
        // Where it had been is gone.
        let () = redis.ask(&["DEL", journal]);
        let _: String = redis.ask(&["XADD", journal, "*", "by", "x", "says", &says]);
    };
    let two = two.restart(meanwhile).await;
    received(&two, 1).await;
    for (path, condition) in [("/a", None), ("/b", Some("\"v\""))] {
        assert_eq!(asks(&two, path).await, 1);
        let seen = two.seen();
        assert_eq!(seen.last().and_then(|head| head.field("if-none-match")), condition, "{path}");
    }
}

fn purge_by_hand(address: std::net::SocketAddr) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    let fields = "Host: example.test\r\nAuthorization: Bearer secret-of-purging\r\nConnection: close\r\n\r\n";
    write!(stream, "PURGE /a HTTP/1.1\r\n{fields}").expect("it takes it");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
