//! Budgets of one connection, frame by frame, and in any pieces.

use proptest::prelude::*;

use super::*;

const PING: u8 = 6;
const PRIORITY: u8 = 2;

fn frame(kind: u8, flags: u8, content: &[u8]) -> Vec<u8> {
    on(1, kind, flags, content)
}

/// A frame on this stream.
fn on(stream: u32, kind: u8, flags: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

fn fresh() -> Frames {
    Frames::new(Instant::now(), 64 << 10)
}

/// A connection whose preface came.
fn greeted() -> Frames {
    let mut frames = fresh();
    frames.client_sent(PREFACE).unwrap();
    frames
}

/// How many of these pass before a rule is broken; one by one.
fn passing(frames: &mut Frames, one: &[u8], most: usize) -> (usize, Option<Rule>) {
    for passed in 0..most {
        if let Err(rule) = frames.client_sent(one) {
            return (passed, Some(rule));
        }
    }
    (most, None)
}

#[test]
fn frames_that_only_control_have_a_budget() {
    let update = |by: u8| frame(WINDOW_UPDATE, 0, &[0, 0, 0, by]);
    for (one, least, most) in [
        (frame(PING, 0, &[0; 8]), 1000, 1100),
        (frame(PING, 1, &[0; 8]), 1000, 1100),
        (frame(PRIORITY, 0, &[0; 5]), 1000, 1100),
        (frame(SETTINGS, 0, &[0; 6]), 1000, 1100),
        (frame(SETTINGS, 0, &[0; 6000]), 10, 20),
        (frame(0xfa, 0, b"grease"), 1000, 1100),
        (update(100), 1000, 1100),
        (update(1), 100, 110),
        (frame(DATA, 0, b""), 100, 110),
        (frame(DATA, PADDED, &[3, 0, 0, 0]), 100, 110),
    ] {
        let (passed, rule) = passing(&mut greeted(), &one, 5000);
        assert_eq!(rule, Some(Rule::ControlFlood), "{one:?}");
        assert!((least..=most).contains(&passed), "{passed} of {one:?}");
    }
}

#[test]
fn resets_of_both_sides_have_one_budget() {
    let mut frames = greeted();
    let reset = frame(RST_STREAM, 0, &[0, 0, 0, 8]);
    for _ in 0..250 {
        frames.client_gets(&reset).unwrap();
    }
    let (passed, rule) = passing(&mut frames, &reset, 5000);
    assert_eq!(rule, Some(Rule::ResetFlood));
    assert!((250..300).contains(&passed), "{passed}");
    assert_eq!(frames.client_gets(&reset), Err(Rule::ResetFlood));
}

#[test]
fn who_reads_as_many_answers_may_cancel_as_many() {
    let mut frames = greeted();
    for _ in 0..10_000 {
        frames.client_sent(&frame(RST_STREAM, 0, &[0, 0, 0, 8])).unwrap();
        frames.client_gets(&frame(HEADERS, END_STREAM, b"head")).unwrap();
    }
}

#[test]
fn small_messages_pay_for_what_their_reader_says() {
    let mut frames = greeted();
    let update = frame(WINDOW_UPDATE, 0, &[0, 0, 0, 12]);
    let said = [update.clone(), update, frame(PING, 0, &[0; 8])].concat();
    for _ in 0..10_000 {
        frames.client_gets(&frame(DATA, 0, b"\0\0\0\0\x07message")).unwrap();
        frames.client_sent(&said).unwrap();
    }
    for _ in 0..10_000 {
        frames.client_sent(&frame(DATA, 0, b"\0\0\0\0\0")).unwrap();
    }
}

#[test]
fn a_field_section_ends_after_some_continuations() {
    let mut frames = greeted();
    for _ in 0..3 {
        frames.client_sent(&frame(HEADERS, 0, b"some")).unwrap();
        for _ in 0..6 {
            frames.client_sent(&frame(CONTINUATION, 0, b"more")).unwrap();
        }
    }
    assert_eq!(frames.client_sent(&frame(CONTINUATION, 0, b"")), Err(Rule::ContinuationFlood));
}

/// A frame has 16,384 bytes at most (RFC 9113 s4.2).
#[test]
fn a_large_field_section_may_have_the_continuations_that_it_fills() {
    let mut frames = Frames::new(Instant::now(), 512 << 10);
    frames.client_sent(PREFACE).unwrap();
    frames.client_sent(&frame(HEADERS, 0, &[0; 16_384])).unwrap();
    for _ in 0..31 {
        frames.client_sent(&frame(CONTINUATION, 0, &[0; 16_384])).unwrap();
    }
    let (_, rule) = passing(&mut frames, &frame(CONTINUATION, 0, b""), 100);
    assert_eq!(rule, Some(Rule::ContinuationFlood));
}

#[test]
fn an_answer_is_owed_from_the_end_of_its_requests_head_to_its_own_end() {
    let mut frames = greeted();
    let (some, more) = (frame(HEADERS, END_STREAM, b"some"), frame(CONTINUATION, END_HEADERS, b"more"));
    for (piece, owes) in [(&some[..], false), (&more[..11], false), (&more[11..], true)] {
        frames.client_sent(piece).unwrap();
        assert_eq!(frames.owes(), owes, "{piece:?}");
    }
    let (head, data) = (frame(HEADERS, END_HEADERS, b"head"), frame(DATA, END_STREAM, b"content"));
    for (piece, owes) in [(&head[..], true), (&data[..12], true), (&data[12..], false)] {
        frames.client_gets(piece).unwrap();
        assert_eq!(frames.owes(), owes, "{piece:?}");
    }
    assert_eq!(frames.sent(), 7);
    frames.client_sent(&frame(HEADERS, END_HEADERS | END_STREAM, b"trailers")).unwrap();
    assert!(!frames.owes(), "the stream is no new one");
}

#[test]
fn an_answer_may_end_before_the_frame_behind_its_requests_head_is_whole() {
    let head = frame(HEADERS, END_HEADERS | END_STREAM, b"head");
    let next = frame(WINDOW_UPDATE, 0, &[0, 0, 1, 0]);
    for cut in 1..next.len() {
        let mut frames = greeted();
        frames.client_sent(&[&head[..], &next[..cut]].concat()).unwrap();
        assert!(frames.owes(), "{cut}");
        frames.client_gets(&head).unwrap();
        assert!(!frames.owes(), "{cut}");
        frames.client_sent(&next[cut..]).unwrap();
        assert!(!frames.owes(), "{cut}");
    }
}

#[test]
fn nothing_is_owed_on_streams_that_a_side_gave_up_or_that_are_ignored() {
    let head = |stream| on(stream, HEADERS, END_HEADERS | END_STREAM, b"head");
    let reset = |stream| on(stream, RST_STREAM, 0, &[0, 0, 0, 8]);
    let mut frames = greeted();
    for stream in [1, 3, 5, 7] {
        frames.client_sent(&head(stream)).unwrap();
    }
    frames.client_sent(&reset(3)).unwrap();
    frames.client_gets(&reset(5)).unwrap();
    // RFC 9113 s6.8: what comes after the last stream is ignored.
    frames.client_gets(&on(0, GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).unwrap();
    frames.client_sent(&head(9)).unwrap();
    assert!(frames.owes());
    frames.client_gets(&on(1, HEADERS, END_HEADERS | END_STREAM, b"head")).unwrap();
    assert!(!frames.owes());
}

#[test]
fn a_goaway_says_by_which_rule_the_connection_ends() {
    let said = |code: u8, why: &str| {
        let content = [&[0, 0, 0, 9, 0, 0, 0, code], why.as_bytes()].concat();
        let mut frames = fresh();
        let verdict = frames.client_gets(&frame(GOAWAY, 0, &content));
        assert_eq!(frames.goaway(Rule::ResetFlood).is_none(), verdict.is_err(), "one GOAWAY is enough");
        verdict
    };
    assert_eq!(said(0, ""), Ok(()));
    assert_eq!(said(1, ""), Err(Rule::Http2));
    assert_eq!(said(11, "too_many_resets"), Err(Rule::ResetFlood));
    assert_eq!(said(11, "too_many_internal_resets"), Err(Rule::ResetFlood));
    assert_eq!(said(11, "too_many_continuations"), Err(Rule::ContinuationFlood));
    assert_eq!(said(11, "header_list_way_too_large"), Err(Rule::ContinuationFlood));
    assert_eq!(said(11, "too_many_data_frames"), Err(Rule::ControlFlood));
    assert_eq!(said(11, ""), Err(Rule::ControlFlood));
}

#[test]
fn a_goaway_of_ours_comes_between_frames_only() {
    let mut frames = fresh();
    let data = frame(DATA, 0, b"content");
    frames.client_gets(&data[..12]).unwrap();
    assert_eq!(frames.goaway(Rule::ControlFlood), None);
    frames.client_gets(&data[12..]).unwrap();
    let goaway = frames.goaway(Rule::ControlFlood).unwrap();
    assert_eq!(fresh().client_gets(&goaway), Err(Rule::ControlFlood));
}

/// RFC 9113 s6.8: it is the newest stream on which something may have been done.
#[test]
fn a_goaway_of_ours_names_the_last_stream_that_was_opened() {
    let mut frames = greeted();
    let last = |frames: &Frames| {
        let goaway = frames.goaway(Rule::ResetFlood).unwrap();
        u32::from_be_bytes(goaway[9..13].try_into().unwrap())
    };
    assert_eq!(last(&frames), 0);
    for stream in [1, 0x0102_0305] {
        frames.client_sent(&on(stream, HEADERS, END_HEADERS, b"head")).unwrap();
    }
    frames.client_sent(&on(0x0102_0307, HEADERS, 0, b"not whole")).unwrap();
    assert_eq!(last(&frames), 0x0102_0305);
    frames.client_gets(&on(0, GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).unwrap();
    assert_eq!(last(&frames), 1, "it is never higher than before");
}

#[test]
fn a_budget_comes_back_with_time() {
    let begin = Instant::now();
    let after = |ms| begin + Duration::from_millis(ms);
    let mut budget = Budget { rule: Rule::ResetFlood, most: 10, per_second: 5, left: 10, filled: begin };
    budget.spend_at(10, || begin).unwrap();
    assert_eq!(budget.spend_at(1, || begin), Err(Rule::ResetFlood));
    assert_eq!(budget.spend_at(1, || after(199)), Err(Rule::ResetFlood));
    assert_eq!(budget.spend_at(1, || after(200)), Ok(()));
    assert_eq!(budget.spend_at(1, || after(390)), Err(Rule::ResetFlood));
    assert_eq!(budget.spend_at(1, || after(400)), Ok(()), "parts of a token are not lost");
    assert_eq!(budget.spend_at(10, || after(3_600_000)), Ok(()));
    assert_eq!(
        budget.spend_at(1, || after(3_600_000)),
        Err(Rule::ResetFlood),
        "it holds no more than its size"
    );
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let content = proptest::collection::vec(any::<u8>(), 0..40);
    (0..12u8, any::<u8>(), content).prop_map(|(kind, flags, content)| frame(kind, flags, &content))
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        all in proptest::collection::vec(any_frame(), 0..60),
        cuts in proptest::collection::vec(0..2500usize, 0..30),
    ) {
        let bytes = all.concat();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let pieces = || cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
        let (mut whole, mut cut) = (greeted(), greeted());
        let verdict = whole.client_sent(&bytes);
        prop_assert_eq!(pieces().try_for_each(|piece| cut.client_sent(piece)), verdict);
        prop_assert_eq!(whole.controls.left, cut.controls.left);
        prop_assert_eq!(whole.resets.left, cut.resets.left);
        prop_assert_eq!(whole.owes(), cut.owes());
        let (mut whole, mut cut) = (fresh(), fresh());
        let verdict = whole.client_gets(&bytes);
        let judged = pieces().map(|piece| cut.client_gets(piece)).fold(Ok(()), Result::and);
        prop_assert_eq!(judged, verdict);
        prop_assert_eq!(whole.sent(), cut.sent());
        prop_assert!(whole.to_client.is_between() && cut.to_client.is_between());
    }

    #[test]
    fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = greeted().client_sent(&bytes);
        let _ = fresh().client_gets(&bytes);
    }
}
