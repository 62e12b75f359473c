//! WebSocket through the gateway (RFC 6455).

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::harness::{Broken, Gateway, Origin, Wire, noise, soon, until};

type Socket = WebSocketStream<tokio::net::TcpStream>;

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: example.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// Attempts at backends that took too long.
const TIMED_OUT: &str = "tollhouse_upstream_attempts_total{upstream=\"origin\",outcome=\"timed_out\"}";

/// Sends every text and binary message back, and ends when the client closes.
async fn echo() -> Origin {
    Origin::new(|wire| async move {
        let Ok(mut socket) = accept_async(wire.into_stream()).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
        while socket.next().await.is_some() {}
    })
    .await
}

async fn connect(gateway: &Gateway) -> Socket {
    let stream = Wire::connect(gateway.address()).await.into_stream();
    let shaken = soon("the handshake", client_async("ws://example.test/chat", stream)).await;
    shaken.expect("101").0
}

async fn next(socket: &mut Socket) -> Message {
    soon("a message", socket.next()).await.expect("a message").expect("an open connection")
}

#[tokio::test]
async fn texts_and_a_mebibyte_of_binary_come_back_unchanged() {
    let origin = echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut socket = connect(&gateway).await;
    let large = Message::binary(noise(1 << 20));
    for message in [Message::text("hello"), Message::text("ü"), large, Message::binary(vec![])] {
        socket.send(message.clone()).await.expect("sent");
        assert!(next(&mut socket).await == message, "another message came back");
    }
}

#[tokio::test]
async fn filters_of_bodies_leave_it_alone() {
    let origin = echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [{{compress: {{min_size: 0B}}}}, {{decompress: {{}}}}, \
         {{body_limit: {{request: 1KiB, response: 1KiB}}}}]}}]",
        origin.address
    ))
    .await;
    let mut socket = connect(&gateway).await;
    for _ in 0..3 {
        let message = Message::binary(noise(5_000));
        socket.send(message.clone()).await.expect("sent");
        assert!(next(&mut socket).await == message, "another message came back");
    }
}

#[tokio::test]
async fn a_close_code_reaches_either_side() {
    let origin = Origin::new(|wire| async move {
        let mut socket = accept_async(wire.into_stream()).await.expect("a handshake");
        let frame = CloseFrame { code: CloseCode::Again, reason: "later".into() };
        socket.close(Some(frame)).await.expect("sent");
        while socket.next().await.is_some() {}
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut socket = connect(&gateway).await;
    let Message::Close(Some(frame)) = next(&mut socket).await else { panic!("not a close") };
    assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Again, "later"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_stays_open_however_quickly_the_origin_answers() {
    // The origin answers before it has read a byte, so that 101 waits for the gateway's first look.
    let origin = Origin::new(|mut wire| async move {
        wire.send(ACCEPT).await;
        if wire.head().await.is_ok() {
            let said = wire.some().await;
            wire.send(said).await;
            wire.closed().await;
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut open = 0;
    for _ in 0..200 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(ASK).await;
        let Ok(head) = client.head().await else { continue };
        assert!(head.line.starts_with("HTTP/1.1 101"), "{head:?}");
        client.send(b"marco").await;
        open += usize::from(client.some().await == b"marco");
    }
    assert_eq!(open, 200);
}

#[tokio::test]
async fn what_the_origin_says_right_behind_its_101_arrives() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send(format!("{ACCEPT}first words")).await;
        wire.closed().await;
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    for _ in 0..20 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(ASK).await;
        client.head().await.expect("101");
        assert_eq!(client.exactly(11).await.expect("words"), b"first words");
    }
}

#[tokio::test]
async fn an_origin_that_closes_the_tunnel_closes_the_clients_connection() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send(ACCEPT).await;
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send(ASK).await;
    client.head().await.expect("101");
    client.closed().await;
}

#[tokio::test]
async fn a_refused_handshake_is_an_ordinary_answer() {
    let origin = Origin::answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let gateway = Gateway::before(&origin, "").await;
    for _ in 0..20 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(ASK).await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.text()), (403, "no".to_owned()));
    }
}

#[tokio::test]
async fn an_ordinary_answer_to_a_handshake_that_stalls_is_broken_off() {
    for timeouts in ["read: 2s", "total: 2s"] {
        let origin = Origin::new(|mut wire| async move {
            let _ = wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour").await;
            wire.rest().await;
        })
        .await;
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, timeouts: {{{timeouts}}}, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, upstream: origin}}]",
            origin.address
        ))
        .await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send(ASK).await;
        let answer = client.answer().await.map(|answer| answer.status);
        assert_eq!(answer, Err(Broken::Body(b"four".to_vec())), "{timeouts}");
        let line = gateway.log_line(|line| line["status"] == 200).await;
        assert_eq!(line["error"], "upstream-timeout", "{timeouts}: {line}");
    }
}

#[tokio::test]
async fn asking_for_an_upgrade_does_not_lift_the_body_limit() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {body_bytes: 1KiB}}").await;
    for protocol in ["websocket", "h2c"] {
        let mut client = Wire::connect(gateway.address()).await;
        let head = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
             Transfer-Encoding: chunked\r\n\r\n1000\r\n"
        );
        client.send(head).await;
        client.send(noise(4096)).await;
        client.send(b"\r\n0\r\n\r\n").await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"), "{protocol}");
    }
}

#[tokio::test]
async fn an_origin_may_not_switch_protocols_unasked() {
    let origin = Origin::answering(ACCEPT).await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = crate::harness::get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"));
}

#[tokio::test]
async fn a_handshake_that_is_not_answered_is_a_504_and_an_idle_tunnel_is_not_cut() {
    let origin = Origin::new(|mut wire| async move {
        let Ok(head) = wire.head().await else { return };
        if head.target() == "/chat" {
            wire.send(ACCEPT).await;
            let said = wire.some().await;
            wire.send(said).await;
        }
        wire.rest().await;
    })
    .await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, timeouts: {{read: 200ms}}, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        origin.address
    ))
    .await;
    let mut open = Wire::connect(gateway.address()).await;
    open.send(ASK).await;
    assert!(open.head().await.expect("a head").line.starts_with("HTTP/1.1 101"));
    let mut silent = Wire::connect(gateway.address()).await;
    silent.send(ASK.replace("/chat", "/silent")).await;
    let answer = silent.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
    assert_eq!(answer.json()["detail"], "read timeout");
    // As long as the other handshake took, and more than `read`, nothing was said here.
    open.send(b"marco").await;
    assert_eq!(open.some().await, b"marco");
}

#[tokio::test]
async fn a_backend_that_leaves_a_handshake_unanswered_is_passed_over_for_another_one() {
    // It binds the good one too.
    for (read, per_try) in [("3s", "none"), ("none", "3s")] {
        let (silent, _asked) = Origin::silent().await;
        let origin = echo().await;
        let gateway = Gateway::counting_all(&format!(
            "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}, {{address: \"{}\"}}],\
             timeouts: {{read: {read}}}, retries: {{conditions: [reset], per_try: {per_try}}}}}]\n\
             routes: [{{name: all, upstream: origin}}]",
            silent.address, origin.address
        ))
        .await;
        // At least one of the later ones begins at the silent backend, and takes as long as the first one is idle.
        let mut sockets = Vec::new();
        for _ in 0..4 {
            sockets.push(connect(&gateway).await);
        }
        for socket in &mut sockets {
            socket.send(Message::text("hello")).await.expect("sent");
            assert!(next(socket).await == Message::text("hello"), "another message came back");
        }
        assert!(gateway.number(TIMED_OUT).await > 0, "read {read}, per try {per_try}");
    }
}

#[tokio::test]
async fn handshakes_that_are_not_answered_open_the_circuit() {
    let (silent, _asked) = Origin::silent().await;
    let gateway = Gateway::counting_all(&format!(
        "upstreams: [{{name: origin, timeouts: {{read: 200ms}}, backends: [{{address: \"{}\"}}],\
         circuit_breaker: {{min_requests: 2, open: 1h, error_ratio: 1%}}}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        silent.address
    ))
    .await;
    let ask = async || {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(ASK).await;
        let answer = client.answer().await.expect("an answer");
        (answer.status, answer.problem())
    };
    for _ in 0..2 {
        assert_eq!(ask().await, (504, "upstream-timeout".to_owned()));
    }
    gateway.says("a circuit breaker opened").await;
    assert_eq!(ask().await, (503, "circuit-open".to_owned()));
    until("their lines", || (gateway.log().len() == 3).then_some(())).await;
    assert_eq!(gateway.number(TIMED_OUT).await, 2);
}

#[tokio::test]
async fn a_ping_is_answered_by_the_other_end_and_not_by_the_gateway() {
    // RFC 6455 s5.5.2: a pong carries the ping's data; tungstenite answers while it reads.
    let (told, mut ponged) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::new(move |wire| {
        let told = told.clone();
        async move {
            let mut socket = accept_async(wire.into_stream()).await.expect("a handshake");
            socket.send(Message::Ping("and you".into())).await.expect("sent");
            while let Some(Ok(message)) = socket.next().await {
                let _ = told.send(message);
            }
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut socket = connect(&gateway).await;
    socket.send(Message::Ping("are you there".into())).await.expect("sent");
    assert_eq!(next(&mut socket).await, Message::Ping("and you".into()));
    assert_eq!(next(&mut socket).await, Message::Pong("are you there".into()));
    assert_eq!(soon("a ping", ponged.recv()).await, Some(Message::Ping("are you there".into())));
    assert_eq!(soon("a pong", ponged.recv()).await, Some(Message::Pong("and you".into())));
}

#[tokio::test]
async fn every_close_code_reaches_the_other_side() {
    let (told, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::new(move |wire| {
        let told = told.clone();
        async move {
            let mut socket = accept_async(wire.into_stream()).await.expect("a handshake");
            while let Some(Ok(message)) = socket.next().await {
                let _ = told.send(message);
            }
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999] {
        let mut socket = connect(&gateway).await;
        let frame = CloseFrame { code: code.into(), reason: "bye".into() };
        socket.close(Some(frame.clone())).await.expect("sent");
        let seen = soon("the close", closed.recv()).await;
        assert_eq!(seen, Some(Message::Close(Some(frame.clone()))), "{code}");
        // RFC 6455 s7.1.1: and it is confirmed.
        assert_eq!(next(&mut socket).await, Message::Close(Some(frame)), "{code}");
    }
}

#[tokio::test]
async fn what_the_ends_negotiate_is_theirs() {
    // RFC 6455 s9.1, RFC 7692 s5: subprotocols and extensions belong to the ends.
    let origin = Origin::new(|mut wire| async move {
        let head = wire.head().await.expect("a head");
        let protocol = head.all("sec-websocket-protocol").join(", ");
        let extensions = head.all("sec-websocket-extensions").join(", ");
        assert_eq!(extensions, "permessage-deflate; client_max_window_bits, x-foo");
        assert_eq!((protocol.as_str(), head.field("sec-websocket-version")), ("chat, superchat", Some("13")));
        let chosen =
            "Sec-WebSocket-Protocol: superchat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
        wire.send(ACCEPT.strip_suffix("\r\n").expect("a head").to_owned() + chosen).await;
        let frame = wire.some().await;
        wire.send(frame).await;
        wire.rest().await;
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    let offer = "Sec-WebSocket-Protocol: chat, superchat\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-foo\r\n\r\n";
    client.send(ASK.strip_suffix("\r\n").expect("a head").to_owned() + offer).await;
    let head = client.head().await.expect("a head");
    assert_eq!(
        (head.field("sec-websocket-protocol"), head.field("sec-websocket-extensions")),
        (Some("superchat"), Some("permessage-deflate"))
    );
    // RFC 7692 s7.2.3.1: "Hello", compressed: RSV1 is set, and nobody in between may mind.
    let frame = [0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    client.send(frame).await;
    assert_eq!(client.exactly(frame.len()).await.expect("the frame"), frame);
}

#[tokio::test]
async fn a_hundred_megabytes_pass_both_ways_at_once() {
    // More than the limit of a request body, which a tunnel has none of.
    let origin = echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {body_bytes: 1MiB}}").await;
    let (mut sink, mut stream) = connect(&gateway).await.split();
    let piece = noise(1_000_000);
    let sent = piece.clone();
    let sending = tokio::spawn(async move {
        for _ in 0..100 {
            sink.send(Message::binary(sent.clone())).await.expect("sent");
        }
    });
    for n in 0..100 {
        let message = soon("a message", stream.next()).await.expect("open").expect("open");
        assert!(message.into_data() == piece, "message {n} is another");
    }
    sending.await.expect("sent");
}

#[tokio::test]
async fn a_client_that_reads_slowly_holds_the_origin_back() {
    let (told, mut sent) = tokio::sync::watch::channel(0_usize);
    let origin = Origin::new(move |wire| {
        let told = told.clone();
        async move {
            let mut socket = accept_async(wire.into_stream()).await.expect("a handshake");
            for n in 1..=128 {
                socket.send(Message::binary(vec![7; 1 << 20])).await.expect("sent");
                told.send_replace(n);
            }
            while socket.next().await.is_some() {}
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut socket = connect(&gateway).await;
    next(&mut socket).await;
    let before = gateway.memory();
    // Until nothing has moved for half a second.
    while tokio::time::timeout(std::time::Duration::from_millis(500), sent.changed()).await.is_ok() {}
    let (stalled, grown) = (*sent.borrow(), gateway.memory().saturating_sub(before) / 1024);
    assert!(stalled < 64 && grown < 16, "{stalled} MiB left the origin, the gateway grew by {grown} MiB");
    for _ in 1..128 {
        assert_eq!(next(&mut socket).await.len(), 1 << 20);
    }
}

#[tokio::test]
async fn a_socket_is_under_way_until_it_ends() {
    let origin = echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [{{concurrency: {{per: ip, limit: 1}}}}]}}]",
        origin.address
    ))
    .await;
    let mut socket = connect(&gateway).await;
    socket.send(Message::text("hello")).await.expect("sent");
    assert!(next(&mut socket).await == Message::text("hello"), "another message came back");
    let refused = crate::harness::get(gateway.address(), "/chat").await;
    assert_eq!((refused.status, refused.field("retry-after")), (429, Some("1")));
    // Without a close: the client is simply gone.
    drop(socket);
    soon("its end", async {
        while crate::harness::get(gateway.address(), "/chat").await.status == 429 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}
