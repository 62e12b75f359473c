//! gRPC through the gateway, between Google's own client and server (gRPC over HTTP/2).

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Gateway, H2c, Origin, Program, refusing, soon};

/// How the gateway reaches the origin.
#[derive(Clone, Copy, Debug)]
enum Link {
    H2c,
    Tls,
}

struct Setup {
    origin: Program,
    gateway: Gateway,
    _files: tempfile::TempDir,
}

impl Setup {
    async fn new(link: Link, more: &str) -> Self {
        Self::with(link, more, "").await
    }

    /// With `more` in the upstream and `rest` beside it.
    async fn with(link: Link, more: &str, rest: &str) -> Self {
        let files = tempfile::TempDir::new().expect("a temporary directory");
        let path = |name: &str| files.path().join(name).display().to_string();
        let (certificate, key) = (path("cert.pem"), path("key.pem"));
        let made = rcgen::generate_simple_self_signed(vec!["grpc.test".to_owned()]).expect("a certificate");
        std::fs::write(&certificate, made.cert.pem()).expect("write");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("write");
        let (arguments, how) = match link {
            Link::H2c => (vec![], "protocol: h2c".to_owned()),
            Link::Tls => (
                vec![certificate.as_str(), key.as_str()],
                format!("protocol: h2, tls: {{sni: grpc.test, ca: \"{certificate}\"}}"),
            ),
        };
        let origin = Program::python("grpc/origin.py", &arguments);
        let port = origin.says(|line| line["port"].is_u64()).await["port"].clone();
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, {how}, backends: [{{address: \"127.0.0.1:{port}\"}}]{more}}}]\n\
             routes: [{{name: all, upstream: origin}}]\n{rest}"
        ))
        .await;
        Self { origin, gateway, _files: files }
    }

    fn client(&self, scenario: &str) -> Program {
        Program::python("grpc/client.py", &[&self.gateway.address().to_string(), scenario])
    }

    async fn outcome(&self, scenario: &str) -> Value {
        self.client(scenario).outcome().await
    }

    /// Lets `sender` run into the window of whom it sends to; gives the MiB it got rid of by then.
    async fn stalls(&self, sender: impl Fn() -> u64) -> u64 {
        let mut last = (sender(), Instant::now());
        let deadline = Instant::now() + Duration::from_secs(30);
        while last.1.elapsed() < Duration::from_secs(1) {
            assert!(Instant::now() < deadline, "it goes on and on");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = sender();
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
        last.0
    }
}

fn sent(python: &Program) -> u64 {
    python.said().iter().filter_map(|line| line["mib"].as_u64()).max().unwrap_or(0)
}

const BOTH: [Link; 2] = [Link::H2c, Link::Tls];

#[tokio::test]
async fn all_four_kinds_of_calls_work_over_h2c_and_over_tls() {
    for link in BOTH {
        let setup = Setup::new(link, "").await;
        let unary = setup.outcome("echo").await;
        assert_eq!((&unary["answer"], &unary["code"]), (&json!("hello"), &json!("OK")), "{link:?}");
        assert_eq!(unary["initial"]["x-initial"], "i");
        assert_eq!(unary["trailing"], json!({"x-trailing": "t", "x-trailing-bin": "b'\\x00\\xff'"}));
        assert_eq!(setup.outcome("collect").await, json!({"sizes": [0, 1, 70_000, 3]}), "{link:?}");
        let expanded = setup.outcome("expand").await;
        assert_eq!(expanded, json!({"numbers": [0, 1, 2, 3, 4], "code": "OK"}), "{link:?}");
        assert_eq!(setup.outcome("chat").await, json!({"last": 200, "code": "OK"}), "{link:?}");
    }
}

#[tokio::test]
async fn messages_of_64_mib_pass_both_ways() {
    for link in BOTH {
        let setup = Setup::new(link, "").await;
        assert_eq!(setup.outcome("large").await, json!({"same": true, "bytes": 64 << 20}), "{link:?}");
    }
}

#[tokio::test]
async fn a_hundred_calls_side_by_side_are_told_apart() {
    for link in BOTH {
        let setup = Setup::new(link, "").await;
        assert_eq!(setup.outcome("side_by_side").await, json!({"right": 100}), "{link:?}");
    }
}

#[tokio::test]
async fn deadlines_and_metadata_reach_the_origin() {
    let setup = Setup::new(Link::H2c, "").await;
    let seen = setup.outcome("metadata").await;
    let left = seen["left"].as_f64().expect("grpc-timeout arrives");
    assert!((5.0..=7.0).contains(&left), "{seen}");
    assert_eq!(
        (&seen["fields"]["x-key"], &seen["fields"]["x-key-bin"]),
        (&json!("v"), &json!("b'\\x00\\xff'"))
    );
}

#[tokio::test]
async fn a_status_without_a_message_passes_with_its_details_and_metadata() {
    let setup = Setup::new(Link::H2c, "").await;
    let outcome = setup.outcome("fail").await;
    assert_eq!(outcome["code"], "FAILED_PRECONDITION");
    assert_eq!(
        (&outcome["details"], &outcome["trailing"]["x-why"]),
        (&json!("not ü 100%"), &json!("because"))
    );
}

#[tokio::test]
async fn a_status_after_messages_passes() {
    let setup = Setup::new(Link::H2c, "").await;
    let mut client = setup.client("half");
    let outcome = client.outcome().await;
    assert_eq!((&outcome["code"], &outcome["details"]), (&json!("DATA_LOSS"), &json!("half")));
    assert_eq!(client.said()[0], json!({"first": "first"}));
}

#[tokio::test]
async fn an_origin_may_end_a_call_while_the_client_still_sends() {
    let setup = Setup::new(Link::H2c, "").await;
    let outcome = setup.outcome("refuse").await;
    assert_eq!((&outcome["code"], &outcome["details"]), (&json!("RESOURCE_EXHAUSTED"), &json!("enough")));
}

#[tokio::test]
async fn each_message_arrives_when_it_is_sent() {
    let setup = Setup::new(Link::H2c, "").await;
    let outcome = setup.outcome("drip").await;
    let times: Vec<f64> = serde_json::from_value(outcome["times"].clone()).expect("times");
    // The last one is sent 0.9 s after the first: held back, all would come with it.
    assert!(times.len() == 4 && times[3] - times[0] > 0.6, "{times:?}");
}

#[tokio::test]
async fn the_clients_deadline_ends_the_call_at_the_origin_too() {
    let setup = Setup::new(Link::H2c, "").await;
    let outcome = setup.outcome("deadline").await;
    assert_eq!(outcome["code"], "DEADLINE_EXCEEDED");
    setup.origin.says(|line| line["event"] == "over").await;
}

#[tokio::test]
async fn a_client_that_cancels_cancels_the_origins_call() {
    for link in BOTH {
        let setup = Setup::new(link, "").await;
        let mut client = setup.client("cancel");
        setup.origin.says(|line| line["event"] == "asked").await;
        client.tell("");
        let over = setup.origin.says(|line| line["event"] == "over").await;
        assert_eq!(over["active"], false, "{link:?}");
        client.tell("");
        assert_eq!(client.outcome().await, json!({"cancelled": true}), "{link:?}");
    }
}

#[tokio::test]
async fn an_origin_that_dies_in_a_call_is_unavailable() {
    let mut setup = Setup::new(Link::H2c, "").await;
    let mut client = setup.client("hang");
    setup.origin.says(|line| line["event"] == "asked").await;
    setup.origin.kill();
    let outcome = client.outcome().await;
    assert_eq!(
        (&outcome["code"], &outcome["details"]),
        (&json!("UNAVAILABLE"), &json!("Upstream broke the connection"))
    );
}

#[tokio::test]
async fn an_origin_that_dies_between_two_messages_is_unavailable_too() {
    for link in BOTH {
        let mut setup = Setup::new(link, "").await;
        let mut client = setup.client("torn");
        client.says(|line| line["event"] == "first").await;
        setup.origin.kill();
        let outcome = client.outcome().await;
        assert_eq!(
            (&outcome["code"], &outcome["details"]),
            (&json!("UNAVAILABLE"), &json!("Upstream broke the connection")),
            "{link:?}"
        );
    }
}

#[tokio::test]
async fn the_total_timeout_ends_a_stream_of_messages_with_a_status() {
    let setup = Setup::new(Link::H2c, ", timeouts: {total: 500ms}").await;
    let outcome = setup.outcome("torn").await;
    assert_eq!(
        (&outcome["code"], &outcome["details"]),
        (&json!("DEADLINE_EXCEEDED"), &json!("total timeout"))
    );
}

#[tokio::test]
async fn an_origin_that_is_not_there_is_unavailable() {
    let address = refusing().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, backends: [{{address: \"{address}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]"
    ))
    .await;
    let mut client = Program::python("grpc/client.py", &[&gateway.address().to_string(), "echo"]);
    let outcome = client.outcome().await;
    assert_eq!(
        (&outcome["code"], &outcome["details"]),
        (&json!("UNAVAILABLE"), &json!("Upstream unreachable"))
    );
}

#[tokio::test]
async fn the_gateways_total_timeout_is_a_deadline_and_its_read_timeout_an_outage() {
    // A deadline is what gRPC calls the whole; a 504 otherwise is UNAVAILABLE in its mapping of HTTP.
    for (timeout, code, details) in
        [("total", "DEADLINE_EXCEEDED", "total timeout"), ("read", "UNAVAILABLE", "read timeout")]
    {
        let setup = Setup::new(Link::H2c, &format!(", timeouts: {{{timeout}: 300ms}}")).await;
        let outcome = setup.outcome("hang").await;
        assert_eq!((&outcome["code"], &outcome["details"]), (&json!(code), &json!(details)));
        setup.origin.says(|line| line["event"] == "over").await;
    }
}

#[tokio::test]
async fn a_silence_ends_a_call_on_which_the_client_may_say_more_and_nobody_is_blamed() {
    // Else a client that says nothing could keep others from the backend.
    let breaker = "circuit_breaker: {min_requests: 2, open: 1h, error_ratio: 1%}";
    let setup = Setup::new(Link::H2c, &format!(", timeouts: {{read: 300ms}}, {breaker}")).await;
    for scenario in ["mute", "listen", "mute", "mute"] {
        let outcome = setup.outcome(scenario).await;
        assert_eq!(
            (&outcome["code"], &outcome["details"]),
            (&json!("UNAVAILABLE"), &json!("read timeout")),
            "{scenario}"
        );
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_holds_the_origin_back_and_not_the_gateways_memory() {
    let setup = Setup::new(Link::H2c, "").await;
    let mut client = setup.client("flood");
    client.says(|line| line["event"] == "first").await;
    let before = setup.gateway.memory();
    let stalled = setup.stalls(|| sent(&setup.origin)).await;
    let grown = setup.gateway.memory().saturating_sub(before) / 1024;
    // 128 MiB wait; one stream's window of 8 MiB and the buffers of four sockets are not much of that.
    assert!(stalled < 48 && grown < 32, "{stalled} MiB left the origin, the gateway grew by {grown} MiB");
    client.tell("");
    assert_eq!(client.outcome().await, json!({"bytes": 2048 * 65536}));
}

#[tokio::test]
async fn an_origin_that_reads_slowly_holds_the_client_back_and_not_the_gateways_memory() {
    let mut setup = Setup::new(Link::H2c, "").await;
    let mut client = setup.client("deaf");
    setup.origin.says(|line| line["event"] == "asked").await;
    let before = setup.gateway.memory();
    let stalled = setup.stalls(|| sent(&client)).await;
    let grown = setup.gateway.memory().saturating_sub(before) / 1024;
    assert!(stalled < 48 && grown < 32, "{stalled} MiB left the client, the gateway grew by {grown} MiB");
    setup.origin.tell("");
    assert_eq!(client.outcome().await, json!({"bytes": 1536 * 65536}));
}

#[tokio::test]
async fn a_call_that_carries_more_than_a_body_may_is_ended_at_once_on_both_sides() {
    // All messages of a call are one body; 413 is UNKNOWN in gRPC's mapping of HTTP.
    let setup = Setup::with(Link::H2c, "", "server: {limits: {body_bytes: 1MiB}}").await;
    let outcome = setup.outcome("deaf").await;
    assert_eq!((&outcome["code"], &outcome["details"]), (&json!("UNKNOWN"), &json!("Body too large")));
    let line = setup.gateway.log_line(|line| line["path"] == "/test.Test/Deaf").await;
    assert_eq!((&line["status"], &line["error"]), (&json!(200), &json!("body-too-large")));
}

#[tokio::test]
async fn broken_frames_are_the_origins_to_judge() {
    let setup = Setup::new(Link::H2c, "").await;
    let origin = ([127, 0, 0, 1], setup.origin.says(|line| line["port"].is_u64()).await["port"].as_u64());
    let origin = (origin.0, u16::try_from(origin.1.expect("a port")).expect("a port")).into();
    for frame in [&b"\0\0\0\0\xffshort"[..], b"\0\xff\xff\xff\xff", b"\0\0", b"\0\0\0\0\x01xyz", b""] {
        let direct = verdict(origin, frame).await;
        assert_eq!(verdict(setup.gateway.address(), frame).await, direct, "{frame:?}");
    }
    // Unknown flags, and compression that was not announced: the origin says this or that, but it says.
    for frame in [b"\x07\0\0\0\x01x", b"\x01\0\0\0\x01x"] {
        assert_ne!(verdict(setup.gateway.address(), frame).await, "None", "{frame:?}");
    }
}

/// The status of a unary call whose messages are these bytes.
async fn verdict(address: std::net::SocketAddr, frame: &[u8]) -> String {
    let call = http::Request::post(format!("http://{address}/test.Test/Echo"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let client = H2c::connect(address).await;
    let (answer, mut stream) = client.open(call.body(()).expect("valid"), false).await;
    stream.send_data(bytes::Bytes::copy_from_slice(frame), true).expect("open");
    let answer = match soon("an answer", answer).await {
        Ok(answer) => answer,
        Err(error) => return format!("reset {:?}", error.reason()),
    };
    let head = answer.headers().get("grpc-status").cloned();
    let mut body = answer.into_body();
    while let Some(piece) = soon("a piece", body.data()).await {
        let Ok(piece) = piece else { return "broken".to_owned() };
        body.flow_control().release_capacity(piece.len()).expect("received");
    }
    let trailers = soon("trailers", body.trailers()).await.ok().flatten().unwrap_or_default();
    format!("{:?}", head.or_else(|| trailers.get("grpc-status").cloned()))
}

#[tokio::test]
async fn a_call_that_is_refused_before_its_message_was_judged_is_told_why() {
    let decides = refusing().await;
    let gateway = Gateway::start(&format!(
        "routes:\n- name: all\n  filters: [{{forward_auth: {{url: \"http://{decides}/\", body: 1KiB}}}}, \
         {{ip_access: {{deny: [127.0.0.0/8]}}}}]\n  respond: {{}}"
    ))
    .await;
    let call = http::Request::post("http://a/test.Test/Echo").header("content-type", "application/grpc");
    let client = H2c::connect(gateway.address()).await;
    let answer = client.send(call.body(()).expect("valid"), b"\0\0\0\0\0").await.expect("an answer");
    // 403 is PERMISSION_DENIED in gRPC's mapping of HTTP.
    assert_eq!(answer.field("grpc-status"), Some("7"), "{answer:?}");
}

#[tokio::test]
async fn te_reaches_the_origin_and_an_answer_of_the_gateway_is_one_frame() {
    // gRPC over HTTP/2, Requests and Responses: `te: trailers`; Trailers-Only ends the stream.
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::new(move |wire| {
        let told = told.clone();
        async move {
            let mut connection = h2::server::handshake(wire.into_stream()).await.expect("HTTP/2");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let _ = told.send(request.headers().get("te").cloned());
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        origin.address
    ))
    .await;
    let call = http::Request::post("http://a/s/M").header("content-type", "application/grpc");
    let client = H2c::connect(gateway.address()).await;
    let (answer, mut stream) =
        client.open(call.header("te", "trailers").body(()).expect("valid"), false).await;
    stream.send_data(bytes::Bytes::from_static(b"\0\0\0\0\0"), true).expect("open");
    let answer = soon("an answer", answer).await.expect("an answer");
    assert_eq!(answer.headers().get("grpc-status").map(|v| v.as_bytes()), Some(&b"14"[..]));
    assert!(answer.body().is_end_stream(), "{answer:?}");
    assert_eq!(soon("the request", seen.recv()).await.flatten(), Some("trailers".parse().expect("valid")));
}
