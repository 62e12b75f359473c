//! The door over real sockets, in front of a real Pingora proxy that answers by itself.

use std::any::Any;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::http::ResponseHeader;
use pingora::proxy::{HttpProxy, ProxyHttp, Session, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::services::Service;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

mod heads;
mod sharing;
mod tls;

use super::*;
use crate::handover::Sockets;
use crate::observe::access_log::{Format, To};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const ANY: &str = "127.0.0.1:0";

/// Answers every request with the facts of its connection.
struct Facts;

#[async_trait]
impl ProxyHttp for Facts {
    type CTX = ();
    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        unreachable!("request_filter answers")
    }

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> pingora::Result<bool> {
        let facts = facts(session).expect("came through the door").clone();
        let pingoras = session.client_addr().and_then(|a| a.as_inet().copied());
        assert_eq!(facts.peer, pingoras, "Pingora names the same client");
        while session.read_request_body().await?.is_some() {}
        let mut head = ResponseHeader::build(200, None)?;
        head.insert_header("content-length", "0")?;
        head.insert_header("x-listener", facts.listener.to_string())?;
        head.insert_header("x-peer", facts.peer.map_or("-".into(), |a| a.to_string()))?;
        head.insert_header("x-local", facts.local.map_or("-".into(), |a| a.to_string()))?;
        head.insert_header("x-unix", facts.unix.to_string())?;
        head.insert_header("x-path", session.req_header().uri.path())?;
        head.insert_header("x-h2", session.is_http2().to_string())?;
        session.write_response_header(Box::new(head), true).await?;
        Ok(true)
    }
}

fn open(listener: &Listener) -> Result<Bound, BindError> {
    Bound::open(listener, &mut Sockets::default())
}

/// A running door; dropping it does not stop it, `stop` does.
struct Running {
    bound: Option<SocketAddr>,
    permits: Arc<Permits>,
    refusals: Arc<Refusals>,
    draining: Draining,
    shutdown: watch::Sender<bool>,
    service: JoinHandle<()>,
}

impl Running {
    fn start(address: &str, limits: Limits, exempt: &'static str) -> Self {
        let permits = Permits::new(limits, move |ip| ip.to_string() == exempt);
        Self::at(open(&listener(address)).unwrap(), Desk { permits, ..desk(LIMITS) })
    }

    fn open(address: &str) -> Self {
        Self::start(address, Limits { total: 10_000, per_ip: None }, "")
    }

    fn patient(limits: HeadLimits) -> Self {
        Self::at(open(&listener(ANY)).unwrap(), desk(limits))
    }

    fn at(bound: Bound, desk: Desk) -> Self {
        let (shutdown, watch) = watch::channel(false);
        let (local, refusals) = (bound.local_addr(), desk.refusals.clone());
        let (permits, draining) = (desk.permits.clone(), desk.draining.clone());
        let mut door = Door::new(app(), vec![bound], desk);
        let service = tokio::spawn(async move { Service::start_service(&mut door, None, watch, 2).await });
        Self { bound: local, permits, refusals, draining, shutdown, service }
    }

    fn addr(&self) -> SocketAddr {
        self.bound.expect("a TCP listener")
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr()).await.unwrap()
    }

    /// Waits until this many connections are open.
    async fn until_open(&self, n: usize) {
        let reached = async {
            while self.permits.open() != n {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), reached).await;
        assert!(waited.is_ok(), "{} connections open, not {n}", self.permits.open());
    }

    async fn stop(self) {
        self.shutdown.send(true).unwrap();
        self.service.await.unwrap();
    }
}

/// Limits that only a test which is about them meets.
pub(crate) const LIMITS: HeadLimits = HeadLimits {
    header_bytes: 4096,
    header_count: 8,
    uri_bytes: 1024,
    header_timeout: Duration::from_secs(60),
    idle_timeout: Duration::from_secs(60),
    body_timeout: Duration::from_secs(60),
    min_rate: None,
};

pub(crate) fn desk(limits: HeadLimits) -> Desk {
    Desk {
        permits: Permits::new(Limits { total: 10_000, per_ip: None }, |_| false),
        limits: Arc::new(ArcSwap::from_pointee(limits)),
        refusals: Arc::default(),
        tls: Arc::default(),
        handshakes: Arc::default(),
        observe: Observe::new(100, &Format::Off, &To::Stdout).unwrap(),
        draining: Draining::default(),
        over: Draining::default(),
        pause: Pause::default(),
    }
}

/// Leaves everything to Pingora.
pub(crate) struct ByPingora<A>(pub(crate) Arc<A>);

impl<A: HttpServerApp + Send + Sync + 'static> Application for ByPingora<A> {
    type Pingora = A;

    fn pingora(&self) -> &Arc<A> {
        &self.0
    }

    async fn serve(&self, stream: &mut DoorStream, head: &Head) -> Served {
        Served::Declined(Declined { head: stream.take_head(head), left: None })
    }

    async fn serve_http2(&self, _: &mut Http2Stream) -> Result<(), Option<Box<dyn Any + Send>>> {
        Err(None)
    }
}

fn app() -> Arc<ByPingora<HttpProxy<Facts>>> {
    let mut app = http_proxy(&Arc::new(ServerConf::default()), Facts);
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    app.server_options = Some(options);
    Arc::new(ByPingora(Arc::new(app)))
}

fn listener(address: &str) -> Listener {
    Listener { id: 7, name: "plain".into(), address: address.parse().unwrap(), h2c: true, proxied: false }
}

fn socket_path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tollhouse-{}-{name}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// Sends a request and reads one answer's head.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    stream.write_all(REQUEST).await.unwrap();
    head(stream).await
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // One by one: the answer after this one may be there already.
        let byte = stream.read_u8().await;
        head.push(byte.unwrap_or_else(|_| panic!("closed after {:?}", String::from_utf8_lossy(&head))));
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

/// Whether the gateway closes without a word.
async fn is_closed(mut stream: TcpStream) -> bool {
    let mut buf = [0; 1];
    matches!(stream.read(&mut buf).await, Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_requests_see_the_facts_of_their_connection() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    let me = client.local_addr().unwrap();
    for _ in 0..3 {
        let answer = ask(&mut client).await;
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(answer.contains(&format!("x-peer: {me}\r\n")), "{answer}");
        assert!(answer.contains(&format!("x-local: {}\r\n", door.addr())), "{answer}");
        assert!(answer.contains("x-listener: 7\r\n") && answer.contains("x-unix: false\r\n"), "{answer}");
    }
    assert_eq!(door.permits.open(), 1);
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_requests_with_prior_knowledge_see_the_facts_of_their_connection() {
    let door = Running::open(ANY);
    let client = door.connect().await;
    let me = client.local_addr().unwrap().to_string();
    let (mut send, connection) = h2::client::handshake(client).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..2 {
        let request = http::Request::get("http://a/").body(()).unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["x-peer"], me.as_str());
        assert_eq!(answer.headers()["x-h2"], "true");
        assert_eq!(answer.headers()["x-listener"], "7");
    }
    assert_eq!(door.permits.open(), 1);
    drop(send);
    connection.await.unwrap().unwrap();
    door.until_open(0).await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preface_is_recognised_however_it_is_cut() {
    let door = Running::open(ANY);
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for cut in [1, 3, 23] {
        let mut client = door.connect().await;
        client.set_nodelay(true).unwrap();
        client.write_all(&preface[..cut]).await.unwrap();
        client.write_all(&preface[cut..]).await.unwrap();
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // empty SETTINGS
        let mut frame = [0; 9];
        client.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[3], 4, "the server's first frame is SETTINGS (RFC 9113 s3.4)");
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_request_starting_like_the_preface_is_http1() {
    let door = Running::open(ANY);
    for request in
        ["PRI /x HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"]
    {
        let mut client = door.connect().await;
        client.set_nodelay(true).unwrap();
        for byte in request.as_bytes() {
            client.write_all(&[*byte]).await.unwrap();
        }
        let answer = head(&mut client).await;
        assert!(answer.contains("x-h2: false"), "{answer}");
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ipv6_listener_serves() {
    let door = Running::open("[::1]:0");
    let mut client = door.connect().await;
    let me = client.local_addr().unwrap();
    assert!(ask(&mut client).await.contains(&format!("x-peer: {me}\r\n")));
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv4_clients_of_an_ipv6_listener_are_seen_as_ipv4() {
    let door = Running::open("[::]:0");
    let mut client = TcpStream::connect(("127.0.0.1", door.addr().port())).await.unwrap();
    assert!(ask(&mut client).await.contains("x-peer: 127.0.0.1:"));
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_serves_and_has_no_peer_address() {
    let path = socket_path("serves");
    let door = Running::open(&unix(&path));
    let mut client = UnixStream::connect(&path).await.unwrap();
    let answer = ask(&mut client).await;
    assert!(answer.contains("x-unix: true\r\n") && answer.contains("x-peer: -\r\n"), "{answer}");
    door.stop().await;
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_socket_file_nobody_answers_on_is_replaced() {
    let path = socket_path("stale");
    drop(open(&listener(&unix(&path))).unwrap());
    assert!(path.exists());
    let living = open(&listener(&unix(&path))).unwrap();
    let refused = open(&listener(&unix(&path))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    drop(living);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "not a socket").unwrap();
    assert!(open(&listener(&unix(&path))).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"not a socket");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_port_in_use_is_named_with_its_listener() {
    let taken = bind(&[listener(ANY)], &mut Sockets::default()).unwrap().remove(0).local_addr().unwrap();
    let holder = open(&listener(&taken.to_string())).unwrap();
    let error = bind(&[listener(ANY), listener(&taken.to_string())], &mut Sockets::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {taken} (listener `plain`): address in use"));
    drop(holder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_over_the_total_is_closed_and_the_place_of_one_that_left_is_free() {
    let door = Running::start(ANY, Limits { total: 2, per_ip: None }, "");
    let (mut first, mut second) = (door.connect().await, door.connect().await);
    ask(&mut first).await;
    ask(&mut second).await;
    assert!(is_closed(door.connect().await).await);
    assert_eq!((door.permits.open(), door.permits.refused(Refused::Total)), (2, 1));
    ask(&mut first).await;
    drop(first);
    door.until_open(1).await;
    ask(&mut door.connect().await).await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_all_places_unless_it_is_exempt() {
    let limits = Limits { total: 10, per_ip: Some(1) };
    let door = Running::start(ANY, limits, "127.0.0.2");
    let mut first = door.connect().await;
    ask(&mut first).await;
    assert!(is_closed(door.connect().await).await);
    assert_eq!((door.permits.refused(Refused::PerIp), door.permits.refused(Refused::Total)), (1, 0));
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut trusted = connect_from(IpAddr::from([127, 0, 0, 2]), door.addr()).await;
        ask(&mut trusted).await;
        held.push(trusted);
    }
    drop((first, held));
    door.until_open(0).await;
    ask(&mut door.connect().await).await;
    door.stop().await;
}

async fn connect_from(ip: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_that_come_and_go_leave_none_open() {
    let door = Running::start(ANY, Limits { total: 200, per_ip: Some(200) }, "");
    for round in 0..10 {
        let mut batch = Vec::new();
        for n in 0..100 {
            let mut client = door.connect().await;
            // Some say nothing, some part of a head, some a whole request.
            client.write_all(&REQUEST[..(n + round) % (REQUEST.len() + 1)]).await.unwrap();
            batch.push(client);
        }
        // Accepted in order, so an answer here means that all of them were.
        ask(&mut door.connect().await).await;
        drop(batch);
        door.until_open(0).await;
    }
    assert_eq!(door.permits.refused(Refused::Total) + door.permits.refused(Refused::PerIp), 0);
    ask(&mut door.connect().await).await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_own_connection_only() {
    let door = Running::open(ANY);
    let mut steady = door.connect().await;
    ask(&mut steady).await;
    let garbage: [&[u8]; 4] = [
        &[0xff; 9000],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a client hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame at all",
        b"\0\0\r\n\r\n",
    ];
    for bytes in garbage {
        let mut client = door.connect().await;
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
    }
    door.until_open(1).await;
    assert!(ask(&mut steady).await.starts_with("http/1.1 200"));
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shutdown_ends_the_service_and_closes_the_port() {
    let door = Running::open(ANY);
    let mut idle = door.connect().await;
    ask(&mut idle).await;
    let (addr, draining) = (door.addr(), door.draining.clone());
    assert!(!draining.is_on());
    door.stop().await;
    assert!(draining.is_on());
    assert!(is_closed(idle).await, "idle connections are closed");
    assert_eq!(TcpStream::connect(addr).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_closes_the_port_and_idle_connections_before_the_shutdown() {
    let door = Running::open(ANY);
    let mut idle = door.connect().await;
    ask(&mut idle).await;
    let (addr, draining) = (door.addr(), door.draining.clone());
    draining.start();
    assert!(is_closed(idle).await);
    let Running { service, shutdown, .. } = door;
    service.await.unwrap();
    assert_eq!(TcpStream::connect(addr).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(shutdown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_after_the_draining_began_is_still_answered() {
    let door = Running::open(ANY);
    let mut idle = door.connect().await;
    ask(&mut idle).await;
    door.draining.start();
    ask(&mut idle).await;
    door.stop().await;
}

/// Most connections are idle, and each holds this for as long as it is open.
#[tokio::test]
async fn a_connection_has_little_room_of_its_own() {
    let (socket, _client) = UnixStream::pair().unwrap();
    let desk = desk(LIMITS);
    let permit = desk.permits.take(None).unwrap();
    let facts = ConnFacts { listener: 0, peer: None, local: None, unix: true, tls: None };
    let stream = Box::new(DoorStream::new(socket.into(), facts, &desk, permit));
    let shutdown = desk.draining.watch();
    let common = Arc::new(Common { app: app(), listeners: Box::new([]), desk });
    let served = conn::serve(common, stream, shutdown, std::time::Instant::now());
    assert!(size_of_val(&served) < 1024, "{} bytes of a task", size_of_val(&served));
    assert!(size_of::<DoorStream>() < 768, "{} bytes of a stream", size_of::<DoorStream>());
}
