//! Clients that go away while their requests wait, over every protocol: their places are for others.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::{Gateway, H2c, Origin, Wire, get, soon, until};

/// Places in the queue.
const PLACES: usize = 3;

/// Asks, and gives the status; whoever drops it goes away.
type Client = BoxFuture<'static, u16>;

/// How clients ask over HTTP/1, with bodies that are not all there.
const HEADS: [&str; 5] = [
    "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n",
    "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc",
];

fn over_http1(address: SocketAddr, head: &'static str) -> Client {
    Box::pin(async move {
        let mut wire = Wire::connect(address).await;
        wire.send(head).await;
        wire.answer().await.expect("an answer").status
    })
}

/// A client over HTTP/1 that sends more than is read before its turn: of its body, or further requests.
fn far_ahead(address: SocketAddr, length: usize) -> Client {
    let body = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{:40000}", "");
    Box::pin(async move {
        let mut wire = Wire::connect(address).await;
        wire.send(body).await;
        wire.answer().await.expect("an answer").status
    })
}

/// A stream of a connection that stays: going away is to reset it. A POST has its body still to come.
fn over_http2(client: H2c, method: &'static str) -> Client {
    let request = Request::builder().method(method).uri("http://a.test/").body(()).expect("valid");
    Box::pin(async move {
        let (answer, _body) = client.open(request, method == "GET").await;
        answer.await.expect("an answer").status().as_u16()
    })
}

/// A connection for one stream, which ends with it.
fn alone_over_http2(address: SocketAddr) -> Client {
    Box::pin(async move {
        let stream = TcpStream::connect(address).await.expect("connected");
        let (mut streams, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let request = Request::get("http://a.test/").body(()).expect("valid");
        let (answer, _) = streams.send_request(request, true).expect("open");
        tokio::select! {
            answer = answer => answer.expect("an answer").status().as_u16(),
            _ = connection => panic!("no connection"),
        }
    })
}

/// Fills the queue and leaves, three times over: of one more than there are places, one is refused each time.
async fn fill_and_leave(gateway: &Gateway, what: &str, refused: u16, client: impl Fn() -> Client) {
    for _ in 0..3 {
        let left = || gateway.log().iter().filter(|line| line["error"] == "client-closed").count();
        let before = left();
        let mut clients: JoinSet<u16> = (0..=PLACES).map(|_| client()).collect();
        let answered = soon(&format!("{what}: a refusal"), clients.join_next()).await;
        assert_eq!(answered.expect("one").expect("no panic"), refused, "{what}");
        let more = tokio::time::timeout(Duration::from_millis(50), clients.join_next()).await;
        assert!(more.is_err(), "{what}: there were too few places");
        drop(clients);
        until(what, || (left() == before + PLACES).then_some(())).await;
    }
}

/// Makes clients of one kind.
type Kind = (&'static str, Box<dyn Fn() -> Client>);

/// All kinds of clients of this gateway.
async fn kinds(address: SocketAddr) -> Vec<Kind> {
    let connection = H2c::connect(address).await;
    let over_http1 = HEADS.map(|head| (head, Box::new(move || over_http1(address, head)) as _));
    let streams = ["GET", "POST"].map(|method| {
        let connection = connection.clone();
        (method, Box::new(move || over_http2(connection.clone(), method)) as _)
    });
    let ahead = [("much ahead", 0), ("a long body", 999_999)]
        .map(|(what, length)| (what, Box::new(move || far_ahead(address, length)) as _));
    let alone: Kind = ("a connection of HTTP/2", Box::new(move || alone_over_http2(address)));
    over_http1.into_iter().chain(streams).chain(ahead).chain([alone]).collect()
}

#[tokio::test]
async fn who_leaves_a_throttle_over_any_protocol_leaves_its_place_to_others() {
    // Nobody's turn comes for 20 seconds, so each kind has a gateway for itself.
    for at in 0..HEADS.len() + 5 {
        let gateway = Gateway::start(&format!(
            "routes: [{{name: all, filters: [{{rate_limit: {{per: ip, limit: 3/min, burst: 1, \
             over: {{delay: 1m, queue: {PLACES}}}}}}}], respond: {{}}}}]\n",
        ))
        .await;
        assert_eq!(get(gateway.address(), "/").await.status, 200);
        let (what, client) = kinds(gateway.address()).await.swap_remove(at);
        fill_and_leave(&gateway, what, 429, client).await;
    }
}

#[tokio::test]
async fn who_leaves_the_queue_of_an_upstream_over_any_protocol_leaves_its_place_to_others() {
    let (origin, mut events) = Origin::silent().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}], \
         concurrency: {{in_flight: 1, queue: {PLACES}, max_wait: 1m}}}}]\n\
         routes: [{{name: all, upstream: origin}}]\n",
        origin.address
    ))
    .await;
    let mut first = Wire::connect(gateway.address()).await;
    first.send(HEADS[0]).await;
    assert_eq!(soon("the first", events.recv()).await, Some("asked"));
    for (what, client) in kinds(gateway.address()).await {
        fill_and_leave(&gateway, what, 503, client).await;
    }
}
