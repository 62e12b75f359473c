//! What it costs to encode and decode a MiB of JSON that comes in pieces, and to look up an address
//! among 10,000 ranges.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollhouse_filters::coding::decode::{Coding, Decoder, Limits};
use tollhouse_filters::coding::encode::{Algorithm, Encoder};
use tollhouse_filters::values::{IpSet, Network};

const PIECE: usize = 16 * 1024;
const ALGORITHMS: [(Algorithm, u8); 6] = [
    (Algorithm::Zstd, 1),
    (Algorithm::Zstd, 3),
    (Algorithm::Br, 4),
    (Algorithm::Br, 6),
    (Algorithm::Gzip, 1),
    (Algorithm::Gzip, 6),
];

/// A MiB of records as an API gives them.
fn json() -> Vec<u8> {
    let mut text = Vec::new();
    let mut state = 7_u32;
    while text.len() < 1 << 20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let record = format!(
            "{{\"id\":{},\"name\":\"user-{:x}\",\"active\":{},\"score\":{}.{}}},\n",
            text.len(),
            state,
            state & 1 == 0,
            state >> 24,
            state >> 28
        );
        text.extend_from_slice(record.as_bytes());
    }
    text.truncate(1 << 20);
    text
}

fn encoded(algorithm: Algorithm, level: u8, body: &[u8], piece: usize) -> Vec<u8> {
    let mut encoder = Encoder::new(algorithm, level).expect("memory");
    let mut out = Vec::new();
    for piece in body.chunks(piece) {
        out.extend_from_slice(&encoder.piece(piece).expect("encodes"));
    }
    out.extend_from_slice(&encoder.finish(b"").expect("encodes"));
    out
}

fn coding(c: &mut Criterion) {
    let body = json();
    let mut group = c.benchmark_group("coding");
    group.throughput(Throughput::Bytes(body.len() as u64)).sample_size(10);
    for (algorithm, level) in ALGORITHMS {
        let name = algorithm.name();
        let sent = encoded(algorithm, level, &body, PIECE);
        let at_once = encoded(algorithm, level, &body, body.len());
        #[expect(clippy::print_stderr, reason = "the sizes belong to the result")]
        let () = eprintln!("{name} {level}: {} bytes in pieces, {} at once", sent.len(), at_once.len());
        group.bench_function(format!("encode {name} {level}"), |b| {
            b.iter(|| encoded(algorithm, level, black_box(&body), PIECE));
        });
        let coding = Coding::named(name).expect("decoded too");
        group.bench_function(format!("decode {name} {level}"), |b| {
            b.iter(|| {
                let limits = Limits { size: 1 << 30, ratio: 1_000 };
                let mut decoder = Decoder::new(&[coding], limits).expect("memory");
                for piece in sent.chunks(PIECE) {
                    black_box(decoder.piece(piece).expect("decodes"));
                }
            });
        });
    }
    group.finish();
}

fn ranges(c: &mut Criterion) {
    let range = |n: u32| -> Network { format!("10.{}.{}.0/25", n / 256, n % 256).parse().expect("a range") };
    let set: IpSet = (0..10_000).map(range).collect();
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));
    let mut n = 0_u32;
    c.bench_function("an address among 10,000 ranges", |b| {
        b.iter(|| {
            n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            black_box(set.contains(address(n >> 10)))
        });
    });
}

criterion_group!(benches, coding, ranges);
criterion_main!(benches);
