//! Work that several wait for and that is done once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;

/// What is under way, by what it is about.
pub(crate) struct Flights<K, V>(UnderWay<K, V>);

type Flight<V> = Shared<BoxFuture<'static, V>>;
type UnderWay<K, V> = Arc<Mutex<HashMap<K, Flight<V>>>>;

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Copy + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Waits for the work about this, which begins now unless it is under way. It ends with the last who waits.
    pub(crate) async fn join(&self, key: K, work: impl FnOnce() -> BoxFuture<'static, V>) -> V {
        let flight = match self.0.lock().entry(key) {
            Entry::Occupied(flight) => flight.get().clone(),
            Entry::Vacant(place) => {
                let (all, work) = (self.0.clone(), work());
                let flight = async move {
                    let value = work.await;
                    all.lock().remove(&key);
                    value
                };
                place.insert(flight.boxed().shared()).clone()
            }
        };
        let waiter = Waiter { flight: Some(flight), key, all: &self.0 };
        waiter.flight.clone().expect("taken at the end only").await
    }
}

/// Whoever waits. The last one to go away ends the work.
struct Waiter<'a, K: Eq + Hash, V: Clone> {
    flight: Option<Flight<V>>,
    key: K,
    all: &'a UnderWay<K, V>,
}

impl<K: Eq + Hash, V: Clone> Drop for Waiter<'_, K, V> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        self.flight = None;
        let is_last = all.get(&self.key).is_some_and(|flight| flight.strong_count() == Some(1));
        let flight = if is_last { all.remove(&self.key) } else { None };
        // What the work holds may look here as it is dropped.
        drop(all);
        drop(flight);
    }
}
