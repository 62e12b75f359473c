//! A faulty upstream that speaks HTTP/2, by hand: the right status, in time, no bad bytes passed on, and nothing left
//! behind for who comes next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::faults::{Seen, check, check_next};
use crate::harness::frames::frame;
use crate::harness::{Gateway, Origin, Wire, soon};

const WAYS: [&str; 2] = ["proxied.test", "hedged.test"];
/// RFC 9113 s6, s11.2.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const END: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` (RFC 7541 appendix A).
const OK: &[u8] = &[0x88];
/// No case.
const NONE: usize = usize::MAX;

/// A head of literal fields.
fn head(fields: &[(&str, &str)], flags: u8, stream: u32) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS | flags, stream, &block)
}

fn ok(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, OK)
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &2u32.to_be_bytes())
}

type Script = fn(u32) -> Vec<u8>;

/// What it is called, what is sent, whether the connection ends then, and what the client must see.
const CASES: &[(&str, Script, bool, Seen)] = &[
    ("a reset before the head", reset, false, Seen::Problem(502)),
    ("a reset after the head", |id| [ok(id), reset(id)].concat(), false, Seen::Cut("")),
    (
        "a reset within the body",
        |id| [ok(id), frame(DATA, 0, id, b"ab"), reset(id)].concat(),
        false,
        Seen::Cut("ab"),
    ),
    (
        "an end of all with an error",
        |id| frame(GOAWAY, 0, 0, &[&id.to_be_bytes()[..], &2u32.to_be_bytes()].concat()),
        true,
        Seen::Problem(502),
    ),
    (
        "a connection that ends within the body",
        |id| [ok(id), frame(DATA, 0, id, b"ab")].concat(),
        true,
        Seen::Cut("ab"),
    ),
    (
        "less than its length",
        |id| {
            [head(&[(":status", "200"), ("content-length", "4")], 0, id), frame(DATA, END, id, b"ab")]
                .concat()
        },
        false,
        Seen::Cut("ab"),
    ),
    (
        "more than its length",
        |id| {
            [head(&[(":status", "200"), ("content-length", "1")], 0, id), frame(DATA, END, id, b"abc")]
                .concat()
        },
        false,
        Seen::Cut("a"),
    ),
    ("no status", |id| head(&[("x-a", "b")], END, id), false, Seen::Problem(502)),
    ("a status that is none", |id| head(&[(":status", "2x0")], END, id), false, Seen::Problem(502)),
    (
        "a name in upper case",
        |id| head(&[(":status", "200"), ("X-A", "b")], END, id),
        false,
        Seen::Problem(502),
    ),
    (
        "a field of one connection",
        |id| head(&[(":status", "200"), ("transfer-encoding", "chunked")], END, id),
        false,
        Seen::Problem(502),
    ),
    (
        "a newline in a value",
        |id| head(&[(":status", "200"), ("x-a", "b\r\nx-c: d")], END, id),
        false,
        Seen::Problem(502),
    ),
    // RFC 9113 s8.6: there is none, so that 502 would be right at once; the h2 crate takes it for an interim answer, and
    // Pingora gives no way to ask for those.
    ("a switch of protocols", |id| head(&[(":status", "101")], 0, id), false, Seen::Problem(504)),
    ("data before the head", |id| frame(DATA, 0, id, b"ab"), false, Seen::Problem(502)),
    ("data of no stream", |_| frame(DATA, 0, 0, b"ab"), false, Seen::Problem(502)),
    (
        "a push that nobody wants",
        |id| frame(PUSH_PROMISE, END_HEADERS, id, &[&2u32.to_be_bytes()[..], OK].concat()),
        false,
        Seen::Problem(502),
    ),
    (
        "a head of no known index",
        |id| frame(HEADERS, END_HEADERS, id, &[0xff, 0xff, 0xff, 0x7f]),
        false,
        Seen::Problem(502),
    ),
    (
        "a head that does not end",
        |id| [frame(HEADERS, 0, id, OK), frame(DATA, END, id, b"ab")].concat(),
        false,
        Seen::Problem(502),
    ),
    ("no HTTP/2", |_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab".to_vec(), false, Seen::Problem(502)),
    ("silence", |_| Vec::new(), false, Seen::Problem(504)),
    ("silence within the body", |id| [ok(id), frame(DATA, 0, id, b"ab")].concat(), false, Seen::Cut("ab")),
    (
        "frames of no known type",
        |id| {
            [frame(0xfa, 7, id, b"what"), ok(id), frame(0xfb, 0, 0, b""), frame(DATA, END, id, b"ab")]
                .concat()
        },
        false,
        Seen::Whole(200, "ab"),
    ),
];

/// An origin that does what this case says with the request that comes next, and answers all others as it should.
async fn faulty() -> (Origin, Arc<AtomicUsize>) {
    let armed = Arc::new(AtomicUsize::new(NONE));
    let next = armed.clone();
    let origin = Origin::new(move |wire| {
        let next = next.clone();
        async move {
            let _ = serve(wire, &next).await;
        }
    });
    (origin.await, armed)
}

async fn serve(mut wire: Wire, next: &AtomicUsize) -> Result<(), crate::harness::Broken> {
    wire.exactly(24).await?;
    wire.send(frame(SETTINGS, 0, 0, &[])).await;
    loop {
        let begin = wire.exactly(9).await?;
        let length = u32::from_be_bytes([0, begin[0], begin[1], begin[2]]);
        wire.exactly(length as usize).await?;
        if begin[3] != HEADERS {
            continue;
        }
        let stream = u32::from_be_bytes([begin[5], begin[6], begin[7], begin[8]]);
        match CASES.get(next.swap(NONE, Ordering::SeqCst)) {
            None => wire.send([ok(stream), frame(DATA, END, stream, b"good")].concat()).await,
            Some((_, script, ends, _)) => {
                let _ = wire.try_send(&script(stream)).await;
                if *ends {
                    return Ok(());
                }
            }
        }
    }
}

#[tokio::test]
async fn each_fault_over_http2_has_its_answer_in_time_and_the_next_client_is_served() {
    let (origin, armed) = faulty().await;
    let gateway = Gateway::start(&format!(
        "upstreams:
  - {{name: origin, protocol: h2c, backends: [{{address: \"{0}\"}}], timeouts: {{read: 300ms}}, retries: {{conditions: []}}}}
  - {{name: two, protocol: h2c, backends: [{{address: \"{0}\"}}, {{address: \"{0}\"}}], timeouts: {{read: 300ms}}, hedge: {{after: 1h}}, retries: {{conditions: []}}}}
routes:
  - {{name: proxied, match: {{hosts: [proxied.test]}}, upstream: origin}}
  - {{name: hedged, match: {{hosts: [hedged.test]}}, upstream: two}}
",
        origin.address
    ))
    .await;
    let mut wrong = Vec::new();
    for way in WAYS {
        for (number, (name, _, _, seen)) in CASES.iter().enumerate() {
            let what = format!("{way}: {name}");
            armed.store(number, Ordering::SeqCst);
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            let told = check(*seen, &soon(&what, client.answer()).await);
            drop(client);
            let next = check_next(&gateway, way).await;
            wrong.extend([told, next].into_iter().flatten().map(|told| format!("{what}: {told}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
