//! Every coding there and back, and what is refused.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use proptest::prelude::*;

use super::budget::Budget;
use super::decode::{Coding, Decoder, Fault, Limits};
use super::encode::{Algorithm, Effort, Encoder};

const CODINGS: [Coding; 4] = [Coding::Zstd, Coding::Br, Coding::Gzip, Coding::Deflate];
const ALGORITHMS: [Algorithm; 3] = [Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip];
const WIDE: Limits = Limits { size: u64::MAX, ratio: u32::MAX };

fn encoded(coding: Coding, body: &[u8]) -> Vec<u8> {
    let algorithm = match coding {
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).expect("a Vec");
            return encoder.finish().expect("a Vec");
        }
        Coding::Zstd => Algorithm::Zstd,
        Coding::Br => Algorithm::Br,
        Coding::Gzip => Algorithm::Gzip,
    };
    Encoder::new(algorithm, 4).and_then(|encoder| encoder.finish(body)).expect("encodes").into()
}

fn decoded(codings: &[Coding], body: &[u8], limits: Limits) -> Result<Vec<u8>, Fault> {
    decoded_in(codings, body.chunks(997), limits)
}

fn decoded_in<'a>(
    codings: &[Coding],
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limits: Limits,
) -> Result<Vec<u8>, Fault> {
    let mut decoder = Decoder::new(codings, limits).expect("memory");
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(&decoder.piece(piece)?);
    }
    decoder.finish().map(|()| out)
}

fn coding(algorithm: Algorithm) -> Coding {
    Coding::named(algorithm.name()).expect("decoded too")
}

/// Bodies that compress well, badly or not at all.
fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..70_000),
        (0_usize..200_000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        "([a-f]{1,9} ){0,3000}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_body_in_any_pieces_comes_back(
        body in body(),
        at in 0..CODINGS.len(),
        sizes in proptest::collection::vec(1_usize..5_000, 1..20),
    ) {
        let whole = encoded(CODINGS[at], &body);
        let (mut rest, mut pieces) = (&whole[..], Vec::new());
        for size in sizes {
            let (piece, after) = rest.split_at(size.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(decoded_in(&CODINGS[at..=at], pieces, WIDE), Ok(body));
    }

    #[test]
    fn each_piece_can_be_decoded_before_the_next_is_made(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3_000), 0..12),
        at in 0..ALGORITHMS.len(),
        level in 1_u8..=9,
    ) {
        let mut encoder = Encoder::new(ALGORITHMS[at], level).expect("memory");
        let mut decoder = Decoder::new(&[coding(ALGORITHMS[at])], WIDE).expect("memory");
        for piece in &pieces {
            let sent = encoder.piece(piece).expect("encodes");
            prop_assert_eq!(&decoder.piece(&sent).expect("decodes")[..], &piece[..]);
        }
        let end = encoder.finish(b"end").expect("encodes");
        prop_assert_eq!(&decoder.piece(&end).expect("decodes")[..], b"end");
        prop_assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic_or_give_too_much(
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
        at in 0..CODINGS.len(),
        flip in any::<usize>(),
    ) {
        let limits = Limits { size: 4_000, ratio: 100 };
        if let Ok(out) = decoded(&CODINGS[at..=at], &bytes, limits) {
            prop_assert!(out.len() <= 4_000);
        }
        let mut damaged = encoded(CODINGS[at], &bytes);
        let place = flip % damaged.len();
        damaged[place] ^= 1 << (flip % 8);
        let _ = decoded(&CODINGS[at..=at], &damaged, limits);
    }
}

#[test]
fn codings_are_undone_in_reverse_order() {
    let body = b"twice over".repeat(100);
    let once = encoded(Coding::Br, &body);
    let twice = encoded(Coding::Gzip, &once);
    assert_eq!(decoded(&[Coding::Br, Coding::Gzip], &twice, WIDE).as_deref(), Ok(&body[..]));
    assert_eq!(decoded(&[Coding::Gzip, Coding::Br], &twice, WIDE), Err(Fault::Malformed));
}

#[test]
fn a_body_that_ends_too_early_is_malformed_wherever_it_ends() {
    let body: Vec<u8> = (0..2_000_u32).flat_map(|n| (n * n).to_le_bytes()).collect();
    for coding in CODINGS {
        let whole = encoded(coding, &body);
        for length in (1..whole.len()).step_by(whole.len() / 50).chain([whole.len() - 1]) {
            assert_eq!(
                decoded(&[coding], &whole[..length], WIDE),
                Err(Fault::Malformed),
                "{coding:?} {length}"
            );
        }
        assert_eq!(decoded(&[coding], b"", WIDE).as_deref(), Ok(&b""[..]), "no body is no fault");
    }
}

#[test]
fn what_follows_the_end_is_malformed() {
    for coding in CODINGS {
        let mut body = encoded(coding, b"whole");
        body.extend(b"more");
        assert_eq!(decoded(&[coding], &body, WIDE), Err(Fault::Malformed), "{coding:?}");
        let (end, more) = body.split_at(body.len() - 4);
        assert_eq!(decoded_in(&[coding], [end, more], WIDE), Err(Fault::Malformed), "{coding:?}");
    }
}

#[test]
fn gzip_members_and_zstd_frames_may_follow_each_other() {
    // RFC 1952 s2.2 and RFC 8878 s3.
    for coding in [Coding::Gzip, Coding::Zstd] {
        let both = [encoded(coding, b"one, "), encoded(coding, b"two")].concat();
        assert_eq!(decoded(&[coding], &both, WIDE).as_deref(), Ok(&b"one, two"[..]), "{coding:?}");
    }
    // RFC 7932 and RFC 1950 know one stream.
    for coding in [Coding::Br, Coding::Deflate] {
        let both = [encoded(coding, b"one, "), encoded(coding, b"two")].concat();
        assert_eq!(decoded(&[coding], &both, WIDE), Err(Fault::Malformed), "{coding:?}");
    }
}

#[test]
fn endless_empty_members_are_malformed() {
    let empty = encoded(Coding::Gzip, b"");
    assert!(decoded(&[Coding::Gzip], &empty.repeat(4_000), WIDE).is_ok());
    assert_eq!(decoded(&[Coding::Gzip], &empty.repeat(5_000), WIDE), Err(Fault::Malformed));
}

#[test]
fn a_bomb_is_refused_at_the_limit() {
    let zeros = vec![0; 10 << 20];
    let limits = Limits { size: 2 << 20, ratio: u32::MAX };
    for coding in CODINGS {
        let bomb = encoded(coding, &zeros);
        assert!(bomb.len() < 110_000, "{coding:?} {}", bomb.len());
        assert_eq!(decoded(&[coding], &bomb, limits), Err(Fault::TooLarge), "{coding:?}");
        let by_ratio = Limits { size: u64::MAX, ratio: 50 };
        assert_eq!(decoded(&[coding], &bomb, by_ratio), Err(Fault::TooLarge), "{coding:?}");
        assert_eq!(decoded(&[coding], &bomb, WIDE).map(|body| body.len()), Ok(10 << 20), "{coding:?}");
        // Wrapped, the bomb is smaller than what it is a bomb against.
        let nested = encoded(Coding::Gzip, &bomb);
        assert_eq!(decoded(&[coding, Coding::Gzip], &nested, limits), Err(Fault::TooLarge), "{coding:?}");
    }
}

#[test]
fn decoders_hold_no_more_than_their_budget_together() {
    let body: Vec<u8> = (0..50_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    for coding in CODINGS {
        let (whole, budget) = (encoded(coding, &body), Arc::new(Budget::new(2 << 20)));
        let begin = || {
            let mut decoder = Decoder::within(&budget, &[coding], WIDE).expect("memory");
            let mut pieces = whole[..whole.len() - 4].chunks(997);
            pieces.try_for_each(|piece| decoder.piece(piece).map(drop)).map(|()| decoder)
        };
        let mut under_way = Vec::new();
        let fault = loop {
            match begin() {
                Ok(decoder) => under_way.push(decoder),
                Err(fault) => break fault,
            }
        };
        assert_eq!(fault, Fault::NoMemory, "{coding:?}");
        assert!((2..50).contains(&under_way.len()), "{coding:?} {}", under_way.len());
        under_way.pop();
        assert!(begin().is_ok(), "{coding:?}");
    }
}

#[test]
fn what_came_out_of_a_piece_counts_for_as_long_as_it_may_wait() {
    let budget = Arc::new(Budget::new(2 << 20));
    for coding in [Coding::Gzip, Coding::Deflate] {
        let bomb = encoded(coding, &vec![0; 900 << 10]);
        let decoded = || {
            let mut decoder = Decoder::within(&budget, &[coding], WIDE).expect("memory");
            decoder.piece(&bomb).map(|_| decoder)
        };
        let first = decoded().expect("there is memory for one");
        assert_eq!(decoded().err(), Some(Fault::NoMemory), "{coding:?}");
        let waiting = first.into_waiting();
        assert_eq!(decoded().err(), Some(Fault::NoMemory), "{coding:?}");
        drop(waiting);
        // As much waits of any body.
        let small = encoded(coding, &vec![0; 64 << 10]);
        let mut under_way = Vec::new();
        for _ in 0..100 {
            let mut decoder = Decoder::within(&budget, &[coding], WIDE).expect("memory");
            decoder.piece(&small).expect("there is memory for many");
            under_way.push(decoder.into_waiting());
        }
        assert!(decoded().is_ok(), "{coding:?}");
    }
}

#[test]
fn all_pieces_that_wait_in_a_queue_count() {
    let budget = Arc::new(Budget::new(2 << 20));
    let begun = || Decoder::within(&budget, &[Coding::Gzip], WIDE).expect("memory");
    // Members, each of which is a piece of its own (RFC 1952 s2.2).
    let member = encoded(Coding::Gzip, &vec![0; 300 << 10]);
    let mut decoder = begun();
    for _ in 0..20 {
        assert!(decoder.piece(&member).is_ok(), "those before it are gone");
    }
    let mut queue: Vec<_> = (0..4).map(|_| decoder.piece(&member).expect("there is memory for it")).collect();
    assert_eq!(decoder.piece(&member), Err(Fault::NoMemory));
    drop(decoder);
    assert_eq!(begun().piece(&member), Err(Fault::NoMemory), "they wait, whatever became of their decoder");
    let rest = queue.pop().map(|piece| piece.slice(1000..));
    assert_eq!(begun().piece(&member), Err(Fault::NoMemory), "a part of a piece is all of it");
    drop(rest);
    assert!(begun().piece(&member).is_ok());
}

#[test]
fn of_a_queue_one_piece_may_be_of_the_half_that_is_kept_for_who_holds_little() {
    let budget = Arc::new(Budget::new(64 << 20));
    let much = budget.take(32 << 20).expect("the first half");
    let begun = || Decoder::within(&budget, &[Coding::Gzip], WIDE).expect("memory");
    let member = encoded(Coding::Gzip, &vec![0; 300 << 10]);
    let mut decoder = begun();
    for _ in 0..3 {
        assert!(decoder.piece(&member).is_ok(), "that is little, and those before it are gone");
    }
    let first = decoder.piece(&member).expect("that is little");
    assert_eq!(decoder.piece(&member), Err(Fault::NoMemory), "two of them are not");
    let mut other = begun();
    assert!(other.piece(&member).is_ok(), "others are not its fault");
    drop(much);
    let queue: Vec<_> = (0..4).map(|_| other.piece(&member)).collect();
    assert!(queue.iter().all(Result::is_ok), "there is room in the first half");
    drop(first);
}

#[test]
fn a_small_body_may_be_as_repetitive_as_it_likes() {
    let body = vec![b' '; 1 << 20];
    let tight = Limits { size: u64::MAX, ratio: 2 };
    assert_eq!(
        decoded(&[Coding::Zstd], &encoded(Coding::Zstd, &body), tight).map(|body| body.len()),
        Ok(1 << 20)
    );
}

#[test]
fn windows_beyond_the_standards_are_malformed() {
    // RFC 8878 s3.1.1.1.2: exponent 14 is 16 MiB, 13 is 8 MiB; then an empty last block.
    let frame = |exponent: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, exponent << 3][..], &[1, 0, 0]].concat();
    assert_eq!(decoded(&[Coding::Zstd], &frame(13), WIDE).as_deref(), Ok(&b""[..]));
    assert_eq!(decoded(&[Coding::Zstd], &frame(14), WIDE), Err(Fault::Malformed));
    assert_eq!(decoded(&[Coding::Zstd], &frame(31), WIDE), Err(Fault::Malformed));
    // Large Window Brotli begins with 0x11, which RFC 7932 s9.1 leaves out; then 30 bits.
    assert_eq!(decoded(&[Coding::Br], &[0x11, 30, 3, 0, 0, 0], WIDE), Err(Fault::Malformed));
}

#[test]
fn names_are_matched_without_case() {
    assert_eq!(Coding::named("GZip"), Some(Coding::Gzip));
    assert_eq!(Coding::named("X-GZIP"), Some(Coding::Gzip));
    assert_eq!(Coding::named("identity"), None);
    assert_eq!(Algorithm::named("deflate"), None, "decoded, but not offered");
}

#[test]
fn the_window_of_a_short_body_is_no_larger_than_it() {
    for algorithm in [Algorithm::Zstd, Algorithm::Br] {
        let cost = |length| Effort::new(algorithm, 4, length).memory();
        assert!(cost(Some(1024)) * 3 < cost(None), "{algorithm:?}");
        assert_eq!(cost(Some(1 << 18)), cost(None));
        assert_eq!(cost(Some(u64::MAX)), cost(None));
        assert_eq!(cost(Some(0)), cost(Some(1)));
    }
}

#[test]
fn a_body_longer_than_was_said_comes_back_too() {
    let body: Vec<u8> = (0..200_000_u32).flat_map(|n| (n % 977).to_le_bytes()).collect();
    for (algorithm, level) in
        ALGORITHMS.iter().flat_map(|algorithm| (1..=6).map(move |level| (*algorithm, level)))
    {
        for length in [0, 1, 1023, 5000, 70_000] {
            let mut encoder = Encoder::of(Effort::new(algorithm, level, Some(length))).expect("memory");
            let mut encoded = encoder.piece(&body[..10]).expect("encodes").to_vec();
            encoded.extend_from_slice(&encoder.finish(&body[10..]).expect("encodes"));
            assert_eq!(decoded(&[coding(algorithm)], &encoded, WIDE).as_deref(), Ok(&body[..]));
        }
    }
}
