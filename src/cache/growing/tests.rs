//! Bodies on their way in: who gets all of one, and what is held of it meanwhile.

use futures_util::FutureExt;
use tokio::task::JoinHandle;

use super::super::Key;
use super::super::store::Parts;
use super::*;

fn growing() -> (Arc<Growing>, Held) {
    let held = Held::default();
    let head = ResponseHeader::build(200, None).expect("valid");
    (Growing::new(head, Facts::default(), Vec::new(), (held.clone(), 0)), held)
}

fn piece(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn all(mut reader: impl ClientBody) -> Result<Vec<Bytes>, ClientError> {
    let mut pieces = Vec::new();
    while let Some(piece) = reader.next().await? {
        pieces.push(piece);
    }
    Ok(pieces)
}

#[tokio::test]
async fn every_reader_gets_the_whole_whenever_it_came() {
    let (growing, held) = growing();
    let early = growing.read().expect("its start is there");
    assert!(growing.push(piece("ab")).await);
    let late = growing.read().expect("its start is there");
    let reading = tokio::spawn(all(early));
    assert!(growing.push(piece("cd")).await);
    growing.finish();
    assert_eq!(reading.await.expect("no panic").expect("whole"), ["ab", "cd"]);
    assert_eq!(all(late).await.expect("whole"), ["ab", "cd"]);
    assert_eq!(growing.pieces().expect("whole").len(), 2);
    assert_eq!(held.bytes(), 4);
    drop(growing);
    assert_eq!(held.bytes(), 0);
}

#[tokio::test]
async fn what_is_stored_is_read_on_from_there_and_held_no_more() {
    let (growing, held) = growing();
    let mut early = growing.read().expect("its start is there");
    assert!(growing.push(piece("ab")).await && growing.push(piece("cd")).await);
    assert_eq!(early.next().await, Ok(Some(piece("ab"))));
    let parts = Parts { status: 200, body: vec![piece("abcdef")], ..Parts::default() };
    let entry = Arc::new(Entry::new(&Key::from_bytes(piece("k")), parts));
    growing.stored(entry);
    assert_eq!(held.bytes(), 0);
    assert_eq!(all(early).await.expect("whole"), ["cdef"]);
    let late = growing.read().expect("its start is there");
    assert_eq!(all(late).await.expect("whole"), ["abcdef"]);
}

#[tokio::test]
async fn a_part_is_cut_from_the_pieces_that_it_lies_in() {
    let (growing, _) = growing();
    let part = |bytes| growing.read().expect("its start is there").part(bytes);
    let parts = [0..1, 1..5, 2..4, 3..7, 6..7, 0..7].map(part);
    let beyond = part(5..9);
    for text in ["ab", "cd", "", "efg"] {
        assert!(growing.push(piece(text)).await);
    }
    growing.finish();
    let expected: [&[&str]; 6] =
        [&["a"], &["b", "cd", "e"], &["cd"], &["d", "efg"], &["g"], &["ab", "cd", "efg"]];
    for (part, expected) in parts.into_iter().zip(expected) {
        assert_eq!(all(part).await.expect("whole"), expected);
    }
    assert!(all(beyond).await.is_err(), "never one that is shorter than was said");
}

#[tokio::test]
async fn what_broke_off_is_never_whole() {
    let (growing, _) = growing();
    let reader = growing.read().expect("its start is there");
    assert!(growing.push(piece("ab")).await);
    growing.abandon();
    growing.finish();
    assert!(all(reader).await.is_err());
    assert_eq!(growing.pieces(), None);
}

#[tokio::test]
async fn what_is_expected_counts_until_it_is_there_or_will_not_be() {
    let held = Held::default();
    let growing = |expected| {
        let head = ResponseHeader::build(200, None).expect("valid");
        Growing::new(head, Facts::default(), Vec::new(), (held.clone(), expected))
    };
    let (kept, passed) = (growing(4), growing(9));
    assert_eq!((kept.share(), passed.share(), held.bytes()), (4, 9, 13));
    assert!(kept.push(piece("ab")).await);
    assert_eq!(held.bytes(), 13);
    assert!(kept.push(piece("cdefg")).await);
    assert_eq!((kept.share(), held.bytes()), (7, 16), "more came than was said");
    let mut reader = passed.read().expect("its start is there");
    assert!(passed.push(piece("ab")).await);
    passed.pass(FEW_HELD);
    assert_eq!((passed.share(), held.bytes()), (2, 9));
    assert_eq!(reader.next().await, Ok(Some(piece("ab"))));
    assert_eq!((passed.share(), held.bytes()), (0, 7), "all who read it have that");
    drop(reader);
    assert!(!passed.push(piece("cd")).await, "nobody reads it");
    assert_eq!(held.bytes(), 7);
    let short = growing(5);
    assert!(short.push(piece("ab")).await);
    short.finish();
    assert_eq!(held.bytes(), 9, "less came than was said");
    drop((kept, passed, short));
    assert_eq!(held.bytes(), 0);
}

#[tokio::test]
async fn what_is_not_kept_waits_for_the_slowest_and_ends_with_the_last_reader() {
    let (growing, held) = growing();
    let mut reader = growing.read().expect("its start is there");
    growing.pass(MOST_HELD);
    for _ in 0..MOST_HELD {
        assert!(growing.push(piece("x")).await);
    }
    let filler = growing.clone();
    let filling = tokio::spawn(async move { filler.push(piece("y")).await });
    tokio::task::yield_now().await;
    assert!(!filling.is_finished(), "it waits");
    assert_eq!(reader.next().await, Ok(Some(piece("x"))));
    assert!(filling.await.expect("no panic"));
    assert!(growing.read().is_none(), "its start is gone");
    assert_eq!(held.bytes(), MOST_HELD as u64);
    drop(reader);
    assert!(!growing.push(piece("z")).await, "nobody reads it");
    growing.finish();
    assert_eq!(growing.pieces(), None);
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_room_nobody_waits_long_for_who_is_far_behind() {
    let (growing, held) = growing();
    let [mut quick, mut slow] = [(); 2].map(|()| growing.read().expect("its start is there"));
    let push = || growing.push(piece("x")).now_or_never();
    growing.pass(FEW_HELD);
    assert_eq!((push(), push()), (Some(true), None), "it waits for one of them");
    assert_eq!(quick.next().await, Ok(Some(piece("x"))));
    for _ in 2..MOST_HELD {
        assert_eq!(quick.next().await, Ok(Some(piece("x"))));
        assert_eq!(push(), Some(true));
    }
    assert_eq!(held.bytes(), MOST_HELD as u64);
    assert_eq!(slow.next().await, Ok(Some(piece("x"))), "all of that is held");
    assert_eq!(quick.next().await, Ok(Some(piece("x"))));
    assert_eq!(push(), Some(true));
    assert_eq!(quick.next().await, Ok(Some(piece("x"))));
    let since = Instant::now();
    assert!(growing.push(piece("x")).await);
    assert!((PATIENCE..PATIENCE * 2).contains(&since.elapsed()), "it may take something yet");
    growing.finish();
    assert!(all(slow).await.is_err(), "never one that is shorter than was said");
    assert_eq!(all(quick).await.expect("whole"), ["x"]);
}

/// Two readers that are so many pieces apart when there is no room any more, and who fills in one more and the end.
async fn apart(pieces: usize) -> (Reader, Reader, JoinHandle<bool>) {
    let (growing, _) = growing();
    let [mut quick, slow] = [(); 2].map(|()| growing.read().expect("its start is there"));
    for _ in 0..pieces {
        assert!(growing.push(piece("x")).await);
        assert_eq!(quick.next().await, Ok(Some(piece("x"))));
    }
    growing.pass(FEW_HELD);
    let filling = tokio::spawn(async move {
        let is_read = growing.push(piece("y")).await;
        growing.finish();
        is_read
    });
    tokio::task::yield_now().await;
    assert!(!filling.is_finished(), "it waits");
    (quick, slow, filling)
}

#[tokio::test(start_paused = true)]
async fn readers_that_were_apart_when_there_was_room_get_all_of_it_if_they_read_on() {
    let (quick, mut slow, filling) = apart(20).await;
    for _ in 0..5 {
        assert!(!filling.is_finished(), "it waits");
        tokio::time::sleep(PATIENCE * 9 / 10).await;
        assert_eq!(slow.next().await, Ok(Some(piece("x"))));
    }
    assert!(filling.await.expect("no panic"));
    assert_eq!(all(slow).await.expect("whole").len(), 16);
    assert_eq!(all(quick).await.expect("whole"), ["y"]);
}

#[tokio::test(start_paused = true)]
async fn who_catches_up_too_slowly_keeps_the_others_waiting_for_ten_seconds_in_all() {
    let (quick, mut slow, filling) = apart(40).await;
    let since = Instant::now();
    while !filling.is_finished() {
        assert_eq!(slow.next().await, Ok(Some(piece("x"))));
        tokio::time::sleep(PATIENCE * 9 / 10).await;
    }
    assert!((LONGEST..LONGEST + PATIENCE).contains(&since.elapsed()));
    assert!(all(slow).await.is_err(), "it is left behind");
    assert_eq!(all(quick).await.expect("whole"), ["y"]);
}
