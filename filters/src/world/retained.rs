//! What an instance of a filter shares with the one before it: a reload makes instances anew, while requests of
//! the old ones are still under way.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

type Key = (Arc<str>, TypeId, Box<[u8]>);

/// Things by the id of the instance they belong to, as long as somebody holds them.
#[derive(Default)]
pub struct Retained {
    kept: Mutex<HashMap<Key, Weak<dyn Any + Send + Sync>>>,
}

impl Retained {
    /// The thing of this type that belongs to the instance, made if nobody holds one. `part` tells several of one
    /// type apart.
    pub fn get<T: Any + Send + Sync>(
        &self,
        instance: &Arc<str>,
        part: &[u8],
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let key = (instance.clone(), TypeId::of::<T>(), Box::from(part));
        let mut kept = self.kept.lock();
        let found = kept.get(&key).and_then(Weak::upgrade).and_then(|found| found.downcast().ok());
        found.unwrap_or_else(|| {
            kept.retain(|_, thing| thing.strong_count() > 0);
            let made = Arc::new(make());
            let thing: Arc<dyn Any + Send + Sync> = made.clone();
            kept.insert(key, Arc::downgrade(&thing));
            made
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_shared_and_what_nobody_holds_is_made_anew() {
        let retained = Retained::default();
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let first = retained.get(&a, b"", || 1_u32);
        assert_eq!(*retained.get(&a, b"", || 2_u32), 1);
        assert_eq!(*retained.get(&b, b"", || 2_u32), 2);
        assert_eq!(*retained.get(&a, b"x", || 3_u32), 3);
        assert_eq!(*retained.get(&a, b"", || 4_u64), 4);
        drop(first);
        assert_eq!(*retained.get(&a, b"", || 5_u32), 5);
        assert_eq!(retained.kept.lock().len(), 1);
    }
}
