//! Routes by path: a trie over segments, and regular expressions after it.

use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::FixedState;
use memchr::memchr;
use regex::{Regex, RegexSet, RegexSetBuilder};
use tollhouse_filters::path::{NormalPath, Segment};

use super::{Entry, RouteId, RouteMatch};

/// The largest set of regular expressions, compiled; beyond it each is tried on its own.
const SET_SIZE: usize = 10 << 20;

/// The path patterns of one host.
#[derive(Debug)]
pub(super) struct Paths {
    root: u32,
    regexes: Option<Box<Regexes>>,
}

/// The tries of all hosts.
#[derive(Debug, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// Those of one node after those of another.
    entries: Box<[Entry]>,
    /// Until all are there: each with its node, and whether it takes everything from there on.
    placed: Vec<(u32, bool, Entry)>,
}

/// A node of a trie; its place is what was matched so far.
#[derive(Debug, Default)]
struct Node {
    literals: Literals,
    parameter: Option<u32>,
    /// Entries of patterns that end here.
    here: Range<u32>,
    /// Entries of patterns that take everything from here on.
    below: Range<u32>,
}

/// Where literal segments lead. Most nodes have one child or none, and there is one for each
/// segment of each pattern, so they are kept small.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "a map in every node would double the index")]
enum Literals {
    #[default]
    None,
    One(Box<str>, u32),
    Many(Box<HashMap<Box<str>, u32, Hash>>),
}

/// Only administrators choose what is in a trie, so nobody can make it slow.
type Hash = FixedState;

impl Literals {
    fn get(&self, segment: &str) -> Option<u32> {
        match self {
            Self::None => None,
            Self::One(text, child) => (**text == *segment).then_some(*child),
            Self::Many(children) => children.get(segment).copied(),
        }
    }

    fn get_or_insert(&mut self, segment: &str, new: u32) -> u32 {
        if let Some(child) = self.get(segment) {
            return child;
        }
        match std::mem::take(self) {
            Self::None => *self = Self::One(segment.into(), new),
            Self::One(text, child) => {
                *self = Self::Many(Box::new([(text, child), (segment.into(), new)].into_iter().collect()));
            }
            Self::Many(mut children) => {
                children.insert(segment.into(), new);
                *self = Self::Many(children);
            }
        }
        new
    }
}

/// The regular expressions of one host.
#[derive(Debug, Default)]
struct Regexes {
    /// In rank order.
    list: Vec<(Regex, Entry)>,
    /// All of them at once; `None` when they are too large together.
    set: Option<RegexSet>,
}

impl Paths {
    pub(super) fn new(trie: &mut Trie) -> Self {
        Self { root: trie.grow(), regexes: None }
    }

    pub(super) fn add(&mut self, trie: &mut Trie, id: RouteId, route: &RouteMatch) {
        if route.paths.is_empty() {
            trie.placed.push((self.root, true, Entry::new(id, route, None)));
        }
        for (pattern, at) in route.paths.iter().zip(0u16..) {
            let entry = Entry::new(id, route, Some(at));
            match (pattern.segments(), pattern.regex()) {
                (Some((segments, rest)), _) => {
                    let node = segments.iter().fold(self.root, |node, segment| trie.child(node, segment));
                    trie.placed.push((node, rest, entry));
                }
                (None, Some(regex)) => {
                    self.regexes.get_or_insert_default().list.push((regex.clone(), entry));
                }
                (None, None) => {}
            }
        }
    }

    /// Ranks the regular expressions; to be called once, after the last `add`.
    pub(super) fn finish(&mut self, routes: &[RouteMatch]) {
        let Some(regexes) = &mut self.regexes else { return };
        // Stable: file order decides between equals.
        regexes.list.sort_by_key(|(_, entry)| rank(routes, entry));
        let expressions = regexes.list.iter().map(|(regex, _)| regex.as_str());
        regexes.set = RegexSetBuilder::new(expressions).size_limit(SET_SIZE).build().ok();
    }

    /// Shows the entries whose pattern matches, best first, until one is taken.
    pub(super) fn visit(
        &self,
        trie: &Trie,
        path: &NormalPath,
        take: &mut dyn FnMut(Entry) -> bool,
    ) -> Option<Entry> {
        let text = path.matched();
        // `*` has no segments: only what takes everything takes it.
        trie.descend(self.root, text.strip_prefix('/'), take)
            .or_else(|| self.regexes.as_ref()?.visit(text, take))
    }
}

impl Regexes {
    fn visit(&self, path: &str, take: &mut dyn FnMut(Entry) -> bool) -> Option<Entry> {
        let Some(set) = &self.set else {
            let matching = self.list.iter().filter(|(regex, _)| regex.is_match(path));
            return matching.map(|(_, entry)| *entry).find(|entry| take(*entry));
        };
        set.matches(path).into_iter().map(|at| self.list[at].1).find(|entry| take(*entry))
    }
}

fn rank(routes: &[RouteMatch], entry: &Entry) -> impl Ord + use<> {
    routes[entry.route.0 as usize].rank()
}

impl Trie {
    /// A new node.
    fn grow(&mut self) -> u32 {
        let new = u32::try_from(self.nodes.len()).expect("a document is smaller than 4 GiB");
        self.nodes.push(Node::default());
        new
    }

    /// The child of a node for this segment, made if it is not there.
    fn child(&mut self, node: u32, segment: &Segment) -> u32 {
        let new = u32::try_from(self.nodes.len()).expect("a document is smaller than 4 GiB");
        let parent = &mut self.nodes[node as usize];
        let child = match segment {
            Segment::Literal(text) => parent.literals.get_or_insert(text, new),
            Segment::Parameter(_) => *parent.parameter.get_or_insert(new),
        };
        if child == new {
            self.grow();
        }
        child
    }

    /// Ranks what shares a place; to be called once, after the last `add`.
    pub(super) fn finish(&mut self, routes: &[RouteMatch]) {
        let mut placed = std::mem::take(&mut self.placed);
        // Stable: file order decides between equals.
        placed.sort_by_key(|(node, rest, entry)| (*node, *rest, rank(routes, entry)));
        for ((node, rest, _), at) in placed.iter().zip(0u32..) {
            let node = &mut self.nodes[*node as usize];
            let entries = if *rest { &mut node.below } else { &mut node.here };
            *entries = if entries.end == at { entries.start } else { at }..at + 1;
        }
        self.entries = placed.into_iter().map(|(_, _, entry)| entry).collect();
        self.nodes.shrink_to_fit();
    }

    /// `rest` is what is left of the path, `None` at its end.
    fn descend(&self, node: u32, rest: Option<&str>, take: &mut dyn FnMut(Entry) -> bool) -> Option<Entry> {
        let node = &self.nodes[node as usize];
        let Some(rest) = rest else {
            return self.first(&node.here, take).or_else(|| self.first(&node.below, take));
        };
        let (segment, after) = match memchr(b'/', rest.as_bytes()) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        if let Some(child) = node.literals.get(segment)
            && let Some(found) = self.descend(child, after, take)
        {
            return Some(found);
        }
        if let Some(child) = node.parameter.filter(|_| !segment.is_empty())
            && let Some(found) = self.descend(child, after, take)
        {
            return Some(found);
        }
        self.first(&node.below, take)
    }

    /// The first of these entries that is taken.
    fn first(&self, entries: &Range<u32>, take: &mut dyn FnMut(Entry) -> bool) -> Option<Entry> {
        self.entries[entries.start as usize..entries.end as usize].iter().copied().find(|entry| take(*entry))
    }
}
