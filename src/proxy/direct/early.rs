//! What of a body is here before an attempt begins.

use bytes::Bytes;

use super::relay::MUCH_ROOM;
use crate::proxy::replay::WholeBody;
use crate::upstream::Keep;

/// The body that an attempt begins with.
pub(super) enum Start {
    /// What attempts before it read, and how much of it is kept for those after it.
    Part(Vec<u8>, Keep),
    /// All of it, which others hold.
    Whole(WholeBody),
}

/// What of a body is here and not on its way yet.
pub(super) struct Early {
    piece: Bytes,
    then: Then,
}

enum Then {
    Piece(Bytes),
    /// From the piece with this number.
    Whole(WholeBody, usize),
}

impl Early {
    /// What was read before, and what came with the head.
    pub(super) fn part(before: Vec<u8>, with_head: Bytes) -> Self {
        Self { piece: before.into(), then: Then::Piece(with_head) }
    }

    /// All of the body.
    pub(super) fn whole(body: WholeBody) -> Self {
        Self { piece: Bytes::new(), then: Then::Whole(body, 0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.piece.is_empty()
            && match &self.then {
                Then::Piece(piece) => piece.is_empty(),
                Then::Whole(body, next) => *next == body.chunks().len(),
            }
    }

    /// The next piece; empty if there is none. So short, as the rest is held a second time while a backend does not take it.
    pub(super) fn take(&mut self) -> Bytes {
        if self.piece.is_empty() {
            self.piece = match &mut self.then {
                Then::Piece(piece) => std::mem::take(piece),
                Then::Whole(body, next) => {
                    let piece = body.chunks().get(*next).cloned().unwrap_or_default();
                    *next += usize::from(!piece.is_empty());
                    piece
                }
            };
        }
        self.piece.split_to(self.piece.len().min(MUCH_ROOM))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::replay::{Budget, Gathered};

    fn all(mut early: Early) -> Vec<usize> {
        let pieces = std::iter::from_fn(|| (!early.is_empty()).then(|| early.take().len()));
        pieces.collect()
    }

    #[test]
    fn what_was_read_before_precedes_what_came_with_the_head() {
        let mut early = Early::part(b"before".to_vec(), Bytes::from_static(b"head"));
        assert_eq!((early.take().as_ref(), early.take().as_ref()), (&b"before"[..], &b"head"[..]));
        assert!(early.is_empty() && early.take().is_empty());
        assert!(Early::part(Vec::new(), Bytes::new()).is_empty());
    }

    #[test]
    fn no_piece_is_longer_than_what_goes_out_at_once() {
        let budget = Budget::new(u64::MAX);
        let mut gathered = Gathered::new(u64::MAX, &budget);
        for length in [5000, 100_000, 5000] {
            gathered.push(vec![0; length].into()).unwrap();
        }
        assert_eq!(all(Early::whole(gathered.finish())), [5000, MUCH_ROOM, 100_000 - MUCH_ROOM, 5000]);
        assert_eq!(all(Early::whole(Gathered::new(0, &budget).finish())), [0; 0]);
    }
}
