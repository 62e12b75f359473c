//! What is made with the first request that needs it, and found by all others without a lock.

use std::sync::OnceLock;

/// Values by keys, for few of them: they are looked through one by one. Without any it is two words large.
pub struct FirstUse<K, T>(OnceLock<Box<Link<K, T>>>);

struct Link<K, T> {
    key: K,
    value: T,
    next: FirstUse<K, T>,
}

impl<K, T> Default for FirstUse<K, T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<K, T> FirstUse<K, T> {
    /// The value of the key that this is; made, with its key, when there is none.
    pub fn find(&self, is_it: impl Fn(&K) -> bool, make: impl Fn() -> (K, T)) -> &T {
        let mut place = self;
        loop {
            let link = place.0.get_or_init(|| {
                let (key, value) = make();
                Box::new(Link { key, value, next: Self::default() })
            });
            // Another thread may have been first, with another key.
            if is_it(&link.key) {
                return &link.value;
            }
            place = &link.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_value_is_made_once_whoever_asks_first() {
        let (all, made) = (FirstUse::<usize, usize>::default(), AtomicUsize::new(0));
        let ask = |key: usize| {
            let make = || {
                thread::yield_now();
                (key, made.fetch_add(1, Ordering::SeqCst) + 100 * key)
            };
            *all.find(|known| *known == key, make) / 100
        };
        let meet = Barrier::new(4);
        let ask_all = || {
            for key in 1..=8 {
                meet.wait();
                assert_eq!(ask(key), key);
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(ask_all))));
        assert_eq!(made.load(Ordering::SeqCst), 8);
    }

    #[test]
    fn what_has_none_is_small() {
        assert!(size_of::<FirstUse<[u8; 100], [u8; 100]>>() <= 2 * size_of::<usize>());
    }
}
