//! Regular expressions that users write, bounded in what they take: each of them, and all that a document has which is
//! only to be checked.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use regex::{Error, Regex, RegexBuilder};

/// Most bytes that one takes once it is compiled.
const LARGEST: usize = 1 << 20;
/// What all but a few are well below.
const SMALL: usize = 16 << 10;

/// Bytes that are left for expressions that are bounded together.
type Left = Option<Arc<AtomicUsize>>;

thread_local! {
    /// For those that this thread compiles.
    static LEFT: RefCell<Left> = const { RefCell::new(None) };
}

/// Compiles an expression, of at most 1 MiB.
///
/// # Errors
/// It is none, or too large; also together with those before it, [`within`] a bound.
pub fn regex(text: &str) -> Result<Regex, Error> {
    bounded(|most| RegexBuilder::new(text).size_limit(most).build())
}

/// As [`regex()`], of which all of a text has to be one.
///
/// # Errors
/// As [`regex()`].
pub fn whole_regex(text: &str) -> Result<Regex, Error> {
    // First alone: `a)|(b` must not close the group that anchors it.
    regex(text).and_then(|_| regex(&format!("^(?:{text})$")))
}

/// As [`regex()`], for another kind, of at most so many bytes as `build` is told.
///
/// # Errors
/// As [`regex()`].
pub fn bounded<T>(build: impl Fn(usize) -> Result<T, Error>) -> Result<T, Error> {
    let Some(left) = LEFT.with_borrow(Clone::clone) else { return build(LARGEST) };
    // What one takes cannot be told, only what it fits into.
    let charged = |most: usize| {
        let charged = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(most));
        charged.map_err(Error::CompiledTooBig).and_then(|_| build(most))
    };
    match charged(SMALL) {
        Err(Error::CompiledTooBig(_)) => charged(LARGEST),
        built => built,
    }
}

/// Does something for which all expressions may take so many bytes together.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    under(Some(Arc::new(AtomicUsize::new(bytes))), work)
}

/// The same work for another thread, under the bound of this one.
pub fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let left = LEFT.with_borrow(Clone::clone);
    move || under(left, work)
}

fn under<T>(left: Left, work: impl FnOnce() -> T) -> T {
    struct Before(Left);
    impl Drop for Before {
        fn drop(&mut self) {
            LEFT.set(self.0.take());
        }
    }
    let _before = Before(LEFT.replace(left));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_bounded_and_so_are_all_together() {
        let large = "\\w{20}";
        assert!(regex("a+").is_ok() && regex(large).is_ok() && regex("(").is_err());
        assert!(matches!(regex("\\w{1000}{1000}"), Err(Error::CompiledTooBig(_))));
        let built = within(3 * LARGEST, || {
            let small = (0..LARGEST / SMALL).filter(|_| regex("a+").is_ok()).count();
            (small, (0..5).filter(|_| regex(large).is_ok()).count(), regex("a").is_ok())
        });
        assert_eq!(built, (LARGEST / SMALL, 1, true));
        assert!(within(SMALL - 1, || regex("a")).is_err());
        let elsewhere = within(SMALL, || {
            let work = carried(|| (regex("a").is_ok(), regex("a").is_ok()));
            std::thread::scope(|scope| scope.spawn(work).join())
        });
        assert_eq!(elsewhere.expect("no panic"), (true, false));
        assert!(regex(large).is_ok(), "the bound ends with its work");
    }
}
