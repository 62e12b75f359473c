//! Limits on how often requests may come, over sockets.

use http::Request;

use crate::harness::{Answer, Gateway, H2c, Origin, get, request, soon};

/// Two routes that count in one budget of three an hour, and one that counts in its own.
fn document(origin: &Origin, generation: usize) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         chains: {{fair: [{{rate_limit: {{per: ip, limit: 3/h}}, name: fair}}]}}\n\
         routes:\n\
         - {{name: one, match: {{paths: [/one]}}, filters: [{{chain: fair}}], upstream: origin}}\n\
         - {{name: two, match: {{paths: [/two]}}, filters: [{{chain: fair}}], respond: {{}}}}\n\
         - {{name: own, match: {{paths: [\"/own/*\"]}}, filters: [{{rate_limit: {{per: ip, limit: 1/h}}}}], respond: {{}}}}\n\
         - {{name: generation, match: {{paths: [/generation]}}, respond: {{body: \"{generation}\"}}}}\n",
        origin.address
    )
}

/// Seconds up to the next full minute: what passes while a test runs is less.
fn minutes(seconds: Option<&str>) -> u64 {
    seconds.expect("seconds").parse::<u64>().expect("a number").div_ceil(60) * 60
}

/// `r` and `t` of the limit `fair`.
fn standing(answer: &Answer) -> (u64, u64) {
    let field =
        answer.field("ratelimit").and_then(|field| field.strip_prefix("\"fair\";r=")).expect("a field");
    let (left, seconds) = field.split_once(";t=").expect("two parameters");
    (left.parse().expect("a number"), minutes(Some(seconds)))
}

async fn reloaded(gateway: &Gateway, origin: &Origin, generation: usize) {
    std::fs::write(gateway.file(), gateway.text(&document(origin, generation))).expect("write");
    soon("the new document", async {
        while get(gateway.address(), "/generation").await.text() != generation.to_string() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn routes_with_one_chain_count_in_one_budget_and_answers_tell_what_is_left() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 0)).await;
    let policy = Some("\"fair\";q=3;w=3600");
    for (path, left) in [("/one", 2), ("/two", 1), ("/one", 0)] {
        let answer = get(gateway.address(), path).await;
        assert_eq!((answer.status, answer.field("ratelimit-policy")), (200, policy), "{path}");
        assert_eq!(standing(&answer), (left, 1200));
    }
    for path in ["/two", "/one"] {
        let answer = get(gateway.address(), path).await;
        // RFC 6585 s4.
        assert_eq!((answer.status, minutes(answer.field("retry-after"))), (429, 1200));
        assert_eq!(standing(&answer), (0, 1200));
        assert_eq!(answer.field("content-type"), Some("application/problem+json"));
        assert!(answer.text().contains("urn:tollhouse:problem:rate-limited"), "{answer:?}");
        assert!(answer.text().contains("the limit `fair` is used up"), "{answer:?}");
    }
    assert_eq!(get(gateway.address(), "/own/a").await.status, 200);
    let line = gateway.log_line(|line| line["status"] == 429).await;
    assert_eq!(line["error"], "rate-limited", "{line}");
}

#[tokio::test]
async fn budgets_outlive_reloads_and_upgrades() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::start(&document(&origin, 0)).await;
    assert_eq!(get(gateway.address(), "/one").await.status, 200);
    assert_eq!(get(gateway.address(), "/own/a").await.status, 200);
    reloaded(&gateway, &origin, 1).await;
    assert_eq!(standing(&get(gateway.address(), "/one").await), (1, 1200));
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(get(gateway.address(), "/two").await.status, 200);
    for path in ["/one", "/two", "/own/b"] {
        assert_eq!(get(gateway.address(), path).await.status, 429, "{path}");
    }
    reloaded(&gateway, &origin, 2).await;
    assert_eq!(get(gateway.address(), "/one").await.status, 429);
}

#[tokio::test]
async fn a_grpc_call_over_the_limit_gets_its_status_in_one_head() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, 0)).await;
    assert_eq!(get(gateway.address(), "/own/a").await.status, 200);
    let call = Request::post("http://a/own/Method").header("content-type", "application/grpc");
    let client = H2c::connect(gateway.address()).await;
    let (answer, _stream) = client.open(call.body(()).expect("valid"), true).await;
    let answer = soon("an answer", answer).await.expect("an answer");
    let field = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    // gRPC's mapping of HTTP statuses: 429 is UNAVAILABLE.
    assert_eq!((answer.status().as_u16(), field("grpc-status")), (200, Some("14")));
    assert_eq!(minutes(field("retry-after")), 3600);
    assert!(field("ratelimit").is_some_and(|field| field.starts_with("\"1/h\";r=0;t=3")), "{answer:?}");
    assert!(answer.body().is_end_stream());
}

#[tokio::test]
async fn who_would_wait_beyond_the_time_for_its_request_is_refused_at_once() {
    let origin = Origin::echo().await;
    let (address, limit) =
        (origin.address, "{rate_limit: {per: ip, limit: 20/min, burst: 1, over: {delay: 5s, queue: 5}}}");
    let gateway = Gateway::start(&format!(
        "upstreams:\n\
         - {{name: patient, backends: [{{address: \"{address}\"}}]}}\n\
         - {{name: hasty, backends: [{{address: \"{address}\"}}], timeouts: {{total: 1s}}}}\n\
         routes:\n\
         - {{name: one, match: {{paths: [/one]}}, timeouts: {{total: 1s}}, filters: [{limit}], upstream: patient}}\n\
         - {{name: two, match: {{paths: [/two]}}, filters: [{limit}], upstream: hasty}}\n"
    ))
    .await;
    for path in ["/one", "/two"] {
        assert_eq!(get(gateway.address(), path).await.status, 200, "{path}");
        // Its turn would be in three seconds.
        let answer = get(gateway.address(), path).await;
        assert_eq!((answer.status, answer.problem().as_str()), (429, "rate-limited"), "{path}");
    }
    assert_eq!(origin.heads().len(), 2);
}

#[tokio::test]
async fn who_waited_longer_than_the_time_for_others_gets_the_stream_of_events_that_it_waited_for() {
    let origin = Origin::echo().await;
    let limit = "{rate_limit: {per: ip, limit: 30/min, burst: 1, over: {delay: 10s, queue: 5}}}";
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}], timeouts: {{total: 1s}}}}]\n\
         routes:\n\
         - {{name: one, match: {{paths: [/one]}}, filters: [{limit}], upstream: origin}}\n\
         - {{name: two, match: {{paths: [/two]}}, filters: [{limit}], upstream: origin, direct: false}}\n",
        origin.address
    ))
    .await;
    let turn = async |path: &str| {
        assert_eq!(get(gateway.address(), path).await.status, 200, "{path}");
        // Its turn is in two seconds.
        let fields = "Accept: text/event-stream\r\n";
        let answer = request(gateway.address(), &format!("GET {path}"), fields).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    };
    tokio::join!(turn("/one"), turn("/two"));
}
