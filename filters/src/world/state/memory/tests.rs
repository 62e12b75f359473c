//! What is kept, for how long, and what goes where there is no more room.

use super::super::TenantId;
use super::*;
use crate::world::ManualClock;

const MINUTE: Duration = Duration::from_secs(60);

fn store(max_entries: usize) -> (Arc<ManualClock>, MemoryState) {
    let clock = Arc::new(ManualClock::new());
    (clock.clone(), MemoryState::new(clock, max_entries))
}

fn key(text: &str) -> StateKey {
    StateKey::new(TenantId(0), "test", text.as_bytes())
}

#[tokio::test]
async fn an_entry_lives_until_its_time_is_up() {
    let (clock, state) = store(100);
    state.put(&key("a"), "1".into(), MINUTE).await.unwrap();
    clock.advance(MINUTE - Duration::from_nanos(1));
    assert_eq!(state.get(&key("a")).await, Ok(Some("1".into())));
    clock.advance(Duration::from_nanos(1));
    assert_eq!(state.get(&key("a")).await, Ok(None));
}

#[tokio::test]
async fn additions_do_not_extend_the_window_and_a_new_window_starts_at_zero() {
    let (clock, state) = store(100);
    assert_eq!(state.add(&key("a"), 1, MINUTE).await, Ok(1));
    clock.advance(MINUTE / 2);
    assert_eq!(state.add(&key("a"), 2, MINUTE).await, Ok(3));
    clock.advance(MINUTE / 2);
    assert_eq!(state.add(&key("a"), 1, MINUTE).await, Ok(1));
}

#[tokio::test]
async fn a_counter_stops_at_the_ends_of_its_range() {
    let (_, state) = store(100);
    state.add(&key("a"), i64::MAX, Duration::MAX).await.unwrap();
    assert_eq!(state.add(&key("a"), 1, MINUTE).await, Ok(i64::MAX));
}

#[tokio::test]
async fn adding_to_something_else_is_an_error() {
    let (_, state) = store(100);
    state.put(&key("a"), "text".into(), MINUTE).await.unwrap();
    assert_eq!(state.add(&key("a"), 1, MINUTE).await, Err(StateError::NotACounter));
}

#[tokio::test]
async fn an_update_sees_the_present_value_and_may_leave_it_alone() {
    let (clock, state) = store(100);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut change = |present: Option<&[u8]>| {
            seen.push(present.map(<[u8]>::to_vec));
            present.is_none().then(|| Bytes::from_static(b"new"))
        };
        state.update(&key("a"), MINUTE, &mut change).await.unwrap();
        clock.advance(MINUTE / 2);
    }
    assert_eq!(seen, [None, Some(b"new".to_vec())]);
    assert_eq!(state.get(&key("a")).await, Ok(None), "what is left alone is not extended either");
}

#[tokio::test]
async fn additions_from_many_tasks_are_all_counted() {
    let (_, state) = store(100);
    let state = Arc::new(state);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let state = state.clone();
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    futures_util::FutureExt::now_or_never(state.add(&key("a"), 1, MINUTE));
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| task.join().unwrap());
    assert_eq!(state.add(&key("a"), 0, MINUTE).await, Ok(4000));
}

#[tokio::test]
async fn a_flood_of_keys_does_not_grow_the_store_beyond_its_bound() {
    let (_, state) = store(160);
    for index in 0..10_000 {
        state.add(&key(&index.to_string()), 1, MINUTE).await.unwrap();
    }
    assert_eq!(state.len(), 160);
    assert_eq!(state.get(&key("9999")).await, Ok(Some("1".into())), "the newest entry is kept");
}

#[test]
fn expired_entries_make_room_before_living_ones() {
    let mut shard = Shard::default();
    let start = Instant::now();
    let entry = |expires| Entry { value: Value::Counter(1), expires };
    shard.insert(&key("long"), entry(start + 10 * MINUTE), start, 3).unwrap();
    shard.insert(&key("dead 1"), entry(start + MINUTE), start, 3).unwrap();
    shard.insert(&key("dead 2"), entry(start + MINUTE), start, 3).unwrap();
    shard.insert(&key("new"), entry(start + 20 * MINUTE), start + 2 * MINUTE, 3).unwrap();
    let keys: Vec<_> = shard.entries.keys().cloned().collect();
    assert_eq!(keys, [key("long"), key("new")]);
}

#[test]
fn with_nothing_expired_the_soonest_to_expire_goes() {
    let start = Instant::now();
    let mut shard = Shard::default();
    for (name, minutes) in [("b", 2), ("a", 1), ("c", 3), ("d", 4)] {
        let entry = Entry { value: Value::Counter(1), expires: start + minutes * MINUTE };
        shard.insert(&key(name), entry, start, 3).unwrap();
    }
    assert!(!shard.entries.contains_key(&key("a")));
    assert_eq!(shard.entries.len(), 3);
}

#[tokio::test]
async fn a_full_store_refuses_what_is_new_rather_than_forget_a_value_that_holds() {
    let (clock, state) = store(16);
    let update = async |name: String| {
        let mut change = |known: Option<&[u8]>| known.is_none().then(|| Bytes::from_static(b"1"));
        state.update(&key(&name), MINUTE, &mut change).await
    };
    assert_eq!(update("first".to_owned()).await, Ok(()));
    let mut refused = 0;
    for index in 0..1000 {
        refused += usize::from(update(index.to_string()).await == Err(StateError::Full));
    }
    assert_eq!((refused, state.len()), (985, 16));
    assert_eq!(state.get(&key("first")).await, Ok(Some("1".into())));
    assert_eq!(state.put(&key("more"), "1".into(), MINUTE).await, Err(StateError::Full));
    assert_eq!(state.add(&key("more"), 1, MINUTE).await, Err(StateError::Full));
    assert_eq!(state.put(&key("first"), "2".into(), MINUTE).await, Ok(()), "it can be changed");
    assert!(!state.refusals.begin(1), "it was told already");
    clock.advance(MINUTE);
    assert_eq!(state.add(&key("more"), 1, MINUTE).await, Ok(1), "what has expired makes room");
    assert!(state.refusals.begin(61), "that was over");
}

#[tokio::test]
async fn counters_make_room_for_values() {
    let (_, state) = store(16);
    for index in 0..1000 {
        state.add(&key(&index.to_string()), 1, MINUTE).await.unwrap();
    }
    state.put(&key("value"), "1".into(), MINUTE).await.unwrap();
    assert_eq!(state.get(&key("value")).await, Ok(Some("1".into())));
}

#[tokio::test]
async fn what_is_exported_lives_on_elsewhere_for_the_time_it_had_left() {
    let (clock, old) = store(100);
    old.add(&key("count"), 7, MINUTE).await.unwrap();
    old.put(&key("gone"), "x".into(), MINUTE / 4).await.unwrap();
    old.put(&key("bytes"), Bytes::from_static(b"\xff\0"), MINUTE).await.unwrap();
    clock.advance(MINUTE / 2);
    let text = serde_json::to_string(&old.export()).unwrap();
    let (clock, new) = store(100);
    new.add(&key("count"), 1, MINUTE).await.unwrap();
    new.import(serde_json::from_str::<Vec<StateEntry>>(&text).unwrap());
    assert_eq!(new.len(), 2);
    assert_eq!(new.add(&key("count"), 0, MINUTE).await, Ok(1), "the newer entry wins");
    assert_eq!(new.get(&key("bytes")).await, Ok(Some(Bytes::from_static(b"\xff\0"))));
    clock.advance(MINUTE / 2);
    assert_eq!(new.get(&key("bytes")).await, Ok(None));
}

#[tokio::test]
async fn what_comes_from_another_process_is_kept_though_it_is_shared_out_otherwise() {
    let (_, old) = store(16);
    let mut kept = Vec::new();
    for index in 0..1000 {
        let key = key(&index.to_string());
        if old.put(&key, "1".into(), MINUTE).await.is_ok() {
            kept.push(key);
        }
    }
    assert_eq!(kept.len(), 16);
    let (_, new) = store(16);
    new.import(old.export());
    for key in &kept {
        assert_eq!(new.get(key).await, Ok(Some("1".into())), "{key:?}");
    }
}

#[tokio::test]
async fn oversized_keys_and_values_are_refused() {
    let (_, state) = store(100);
    let long = StateKey::new(TenantId(0), "test", &[0; MAX_KEY + 1]);
    assert_eq!(state.add(&long, 1, MINUTE).await, Err(StateError::TooLarge { what: "key", limit: MAX_KEY }));
    let big = Bytes::from(vec![0; MAX_VALUE + 1]);
    assert!(matches!(
        state.put(&key("a"), big, MINUTE).await,
        Err(StateError::TooLarge { what: "value", .. })
    ));
}
