//! Decides the same request over and over, to be counted by callgrind:
//!
//! `valgrind --tool=callgrind BINARY ROUTES TIMES`; the difference of two counts of `TIMES` is what
//! the requests between them took, without the start of the process.

mod common;

use std::hint::black_box;
use std::time::Instant;

use futures_util::FutureExt;
use tollhouse::engine::Exchange;
use tollhouse_filters::context::RequestId;

/// As in the gateway itself: what another allocator makes of a larger heap is not the engine's cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    // Cargo adds a flag of its own.
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<usize>().ok());
    let routes = numbers.next().unwrap_or(1);
    let times = numbers.next().unwrap_or(1);
    let snapshot = common::snapshot(routes);
    let connection = common::connection();
    let head = common::request(&common::target(routes / 2));
    let started = Instant::now();
    for _ in 0..times {
        let mut head = head.clone();
        let mut exchange =
            Exchange::begin(snapshot.clone(), &connection, &mut head, RequestId::Made(1), started);
        black_box(exchange.decide(&mut head).now_or_never().expect("nothing to wait for"));
    }
}
