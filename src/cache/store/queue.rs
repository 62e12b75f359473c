//! The order in which a shard gives up what it holds (S3-FIFO: Yang and others, SOSP 2023).
//!
//! What comes in goes to the small queue, a tenth of the bytes. What is asked for again while it is there
//! moves to the main queue, where everything goes round as long as somebody asks for it. A hit only counts,
//! in the node itself: it needs no lock that others wait for, and moves nothing.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use slab::Slab;

use super::entry::Variants;

/// Uses that are counted between two looks at a node.
const MOST_USES: u8 = 3;
/// Uses after which a node has a place in the main queue.
const FOR_MAIN: u8 = 2;
/// The part of the bytes that the small queue may have.
const SMALL_PART: usize = 10;
/// Nodes looked at for one to give up; after that, the next one goes whatever its uses.
const MOST_LOOKS: usize = 1000;
/// No node.
const NONE: u32 = u32::MAX;

/// All entries of a key, in their place in a queue.
pub(super) struct Node {
    pub(super) variants: Variants,
    /// A part of the key's hash.
    pub(super) tag: u32,
    /// The nodes that came in just after and just before it.
    newer: u32,
    older: u32,
    uses: AtomicU8,
    in_main: bool,
}

/// Both queues; their nodes are in a slab.
pub(super) struct Queues {
    small: Queue,
    main: Queue,
}

struct Queue {
    newest: u32,
    oldest: u32,
    bytes: usize,
}

impl Node {
    pub(super) fn new(tag: u32, variants: Variants) -> Self {
        Self { variants, tag, newer: NONE, older: NONE, uses: AtomicU8::new(0), in_main: false }
    }

    /// Counts a use.
    pub(super) fn used(&self) {
        let uses = self.uses.load(Relaxed);
        // Not written when it would change nothing: this is shared by all threads. A use that is lost to
        // another thread's is no loss.
        if uses < MOST_USES {
            self.uses.store(uses + 1, Relaxed);
        }
    }

    pub(super) fn weight(&self) -> usize {
        self.variants.iter().map(|entry| entry.weight()).sum()
    }
}

impl Default for Queues {
    fn default() -> Self {
        Self { small: Queue::new(), main: Queue::new() }
    }
}

impl Queues {
    /// Bytes of all nodes.
    pub(super) fn bytes(&self) -> usize {
        self.small.bytes + self.main.bytes
    }

    /// Puts a node that is in no queue into the small one.
    pub(super) fn push(&mut self, nodes: &mut Slab<Node>, at: u32) {
        let node = &mut nodes[at as usize];
        node.in_main = false;
        let weight = node.weight();
        self.small.push(nodes, at, weight);
    }

    /// Takes a node out of its queue.
    pub(super) fn remove(&mut self, nodes: &mut Slab<Node>, at: u32) {
        let node = &nodes[at as usize];
        let weight = node.weight();
        self.queue(node.in_main).remove(nodes, at, weight);
    }

    /// The weight of a node has changed.
    pub(super) fn reweigh(&mut self, node: &Node, before: usize) {
        let queue = self.queue(node.in_main);
        queue.bytes = queue.bytes - before + node.weight();
    }

    /// The node to give up next; it stays where it is.
    pub(super) fn victim(&mut self, nodes: &mut Slab<Node>) -> Option<u32> {
        for _ in 0..MOST_LOOKS {
            let small = self.main.oldest == NONE || self.small.bytes * SMALL_PART > self.bytes();
            let at = if small { self.small.oldest } else { self.main.oldest };
            let node = nodes.get_mut(at as usize)?;
            let uses = *node.uses.get_mut();
            if uses < if small { FOR_MAIN } else { 1 } {
                return Some(at);
            }
            if !small {
                *node.uses.get_mut() = uses - 1;
            }
            self.move_to_main(nodes, at);
        }
        [self.small.oldest, self.main.oldest].into_iter().find(|at| *at != NONE)
    }

    /// Puts a node last in the main queue.
    pub(super) fn move_to_main(&mut self, nodes: &mut Slab<Node>, at: u32) {
        self.remove(nodes, at);
        let node = &mut nodes[at as usize];
        node.in_main = true;
        let weight = node.weight();
        self.main.push(nodes, at, weight);
    }

    fn queue(&mut self, main: bool) -> &mut Queue {
        if main { &mut self.main } else { &mut self.small }
    }
}

impl Queue {
    fn new() -> Self {
        Self { newest: NONE, oldest: NONE, bytes: 0 }
    }

    fn push(&mut self, nodes: &mut Slab<Node>, at: u32, weight: usize) {
        let before = std::mem::replace(&mut self.newest, at);
        let node = &mut nodes[at as usize];
        (node.newer, node.older) = (NONE, before);
        match nodes.get_mut(before as usize) {
            Some(before) => before.newer = at,
            None => self.oldest = at,
        }
        self.bytes += weight;
    }

    fn remove(&mut self, nodes: &mut Slab<Node>, at: u32, weight: usize) {
        let node = &nodes[at as usize];
        let (newer, older) = (node.newer, node.older);
        match nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
        self.bytes -= weight;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::entry::{Entry, Parts};
    use super::*;
    use crate::cache::Key;

    struct Filled {
        nodes: Slab<Node>,
        queues: Queues,
    }

    impl Filled {
        fn with(count: u32) -> Self {
            let mut filled = Self { nodes: Slab::new(), queues: Queues::default() };
            (0..count).for_each(|at| filled.push(at));
            filled
        }

        fn push(&mut self, at: u32) {
            let key = Key::from_bytes(Bytes::from(format!("{at:08}")));
            let entry = Arc::new(Entry::new(&key, Parts::default()));
            assert_eq!(self.nodes.insert(Node::new(at, Variants::One(entry))), at as usize);
            self.queues.push(&mut self.nodes, at);
        }

        fn give_up(&mut self) -> Option<u32> {
            let at = self.queues.victim(&mut self.nodes)?;
            self.queues.remove(&mut self.nodes, at);
            self.nodes.remove(at as usize);
            Some(at)
        }

        fn given_up(&mut self) -> Vec<u32> {
            std::iter::from_fn(|| self.give_up()).collect()
        }

        fn use_of(&self, at: u32, times: usize) {
            (0..times).for_each(|_| self.nodes[at as usize].used());
        }
    }

    #[test]
    fn what_nobody_asks_for_goes_first_in_first_out() {
        let mut filled = Filled::with(5);
        assert_eq!(filled.given_up(), [0, 1, 2, 3, 4]);
        assert_eq!(filled.queues.bytes(), 0);
        assert_eq!(filled.give_up(), None);
    }

    #[test]
    fn what_is_asked_for_twice_outlives_what_came_later() {
        let mut filled = Filled::with(5);
        filled.use_of(0, 2);
        filled.use_of(1, 1);
        assert_eq!(filled.given_up(), [1, 2, 3, 4, 0]);
    }

    #[test]
    fn in_the_main_queue_each_use_is_another_round() {
        let mut filled = Filled::with(3);
        (0..3).for_each(|at| filled.use_of(at, 2));
        filled.use_of(0, 1);
        assert_eq!(filled.given_up(), [1, 2, 0]);
    }

    #[test]
    fn a_crowd_of_well_used_nodes_is_not_looked_through_for_ever() {
        let mut filled = Filled::with(2000);
        (0..2000).for_each(|at| filled.use_of(at, 3));
        assert!(filled.give_up().is_some());
        let rest = filled.given_up();
        assert_eq!(rest.len(), 1999);
    }

    #[test]
    fn nodes_leave_from_anywhere() {
        let mut filled = Filled::with(5);
        for at in [2, 0, 4] {
            filled.queues.remove(&mut filled.nodes, at);
            filled.nodes.remove(at as usize);
        }
        assert_eq!(filled.given_up(), [1, 3]);
    }
}
