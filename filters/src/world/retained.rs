//! What outlives a reload: things of the same shape are one thing, as long as somebody holds it.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Things by their shape. The next document is compiled while the running one still holds its own.
#[derive(Default)]
pub struct Retained(Mutex<HashMap<String, Weak<dyn Any + Send + Sync>>>);

impl Retained {
    /// The thing of this shape, made now if nobody holds it. A shape names all that the thing goes by; what is
    /// secret in it goes in as a digest.
    pub fn get_or_make<T: Any + Send + Sync>(&self, shape: &str, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        let mut held = self.0.lock();
        let known = held.get(shape).and_then(Weak::upgrade).and_then(|known| known.downcast::<T>().ok());
        if let Some(known) = known {
            return known;
        }
        held.retain(|_, thing| thing.strong_count() > 0);
        let made = make();
        let thing: Arc<dyn Any + Send + Sync> = made.clone();
        held.insert(shape.to_owned(), Arc::downgrade(&thing));
        made
    }
}

impl fmt::Debug for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retained({})", self.0.lock().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_found_again_by_its_shape_and_what_is_not_is_made_anew() {
        let retained = Retained::default();
        let one = retained.get_or_make("a", || Arc::new(1));
        assert!(Arc::ptr_eq(&one, &retained.get_or_make("a", || Arc::new(2))));
        assert_eq!(*retained.get_or_make("b", || Arc::new(3)), 3);
        drop(one);
        assert_eq!(*retained.get_or_make("a", || Arc::new(4)), 4);
    }
}
