//! The located document tree: YAML as written, every node with its place in a file.
//!
//! A document is parsed once into shared, immutable nodes ([`parse`]), merged and substituted as
//! plain data, and read into types by [`from_node`]; every complaint names a file, line, column and
//! key path. YAML 1.2.2 with the core schema (s10.3), less the parts that surprise: no merge keys,
//! no tags of one's own, one document a file.

mod brackets;
mod collect;
mod de;
mod error;
mod frozen;
mod path;
mod raw;
mod scalar;
mod serialize;
mod suggest;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

pub use collect::{Lost, Partly, from_node_all, from_node_partly};
pub use de::{SECRET, from_node};
pub use error::Error;
pub use frozen::Frozen;
pub use path::{Path, Step, Trail};
pub use raw::Raw;
pub use scalar::{Resolved, Scalar};
pub use suggest::nearest as suggest;
pub use yaml::{Limits, parse, parse_bytes};

/// Names one input file; what the number stands for is known to whoever loaded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u16);

/// A place in a file; lines and columns (in characters) count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// The file.
    pub file: FileId,
    /// The line, from 1; 0 for data that no file holds.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// A key of a map and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key as text, whatever it looks like: `80` and `true` are text here.
    pub text: Arc<str>,
    /// Where the key begins.
    pub at: Mark,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// Any other scalar.
    Scalar(Scalar),
    /// A sequence.
    List(Box<[Arc<Node>]>),
    /// A mapping, in written order, keys unique.
    Map(Box<[(Key, Arc<Node>)]>),
}

/// One value of a document with its place. Aliases share the node of their anchor.
///
/// Parsed trees are at most [`Limits::depth`] deep, so recursion over them (dropping included) is
/// safe; trees built by hand are only as deep as the code that builds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it holds.
    pub value: Value,
    /// Where it begins.
    pub at: Mark,
    size: u32,
    height: u16,
}

impl Node {
    /// Makes a node; its size is counted from its children.
    pub fn new(value: Value, at: Mark) -> Node {
        let (mut size, mut height) = (1u32, 0u16);
        let mut count = |child: &Node| {
            size = size.saturating_add(child.size);
            height = height.max(child.height.saturating_add(1));
        };
        match &value {
            Value::Null | Value::Scalar(_) => {}
            Value::List(items) => items.iter().for_each(|item| count(item)),
            Value::Map(entries) => entries.iter().for_each(|(_, item)| count(item)),
        }
        Node { value, at, size, height }
    }

    /// Makes an empty value.
    pub fn null(at: Mark) -> Arc<Node> {
        Arc::new(Node::new(Value::Null, at))
    }

    /// Makes a string, as if it were quoted.
    pub fn string(text: impl Into<Box<str>>, at: Mark) -> Arc<Node> {
        Node::scalar(Scalar::quoted(text), at)
    }

    /// Makes a scalar.
    pub fn scalar(scalar: Scalar, at: Mark) -> Arc<Node> {
        Arc::new(Node::new(Value::Scalar(scalar), at))
    }

    /// Makes a list.
    pub fn list(items: Vec<Arc<Node>>, at: Mark) -> Arc<Node> {
        Arc::new(Node::new(Value::List(items.into()), at))
    }

    /// Makes a map; the caller sees to it that keys are unique.
    pub fn map(entries: Vec<(Key, Arc<Node>)>, at: Mark) -> Arc<Node> {
        Arc::new(Node::new(Value::Map(entries.into()), at))
    }

    /// Number of nodes in this tree with every alias written out, itself included.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Levels of nesting below this node; 0 for a scalar.
    pub fn height(&self) -> usize {
        usize::from(self.height)
    }

    /// The items of a list.
    pub fn as_list(&self) -> Option<&[Arc<Node>]> {
        if let Value::List(items) = &self.value { Some(items) } else { None }
    }

    /// The entries of a map.
    pub fn as_map(&self) -> Option<&[(Key, Arc<Node>)]> {
        if let Value::Map(entries) = &self.value { Some(entries) } else { None }
    }

    /// The scalar.
    pub fn as_scalar(&self) -> Option<&Scalar> {
        if let Value::Scalar(scalar) = &self.value { Some(scalar) } else { None }
    }

    /// The text of a scalar that is a string.
    pub fn as_str(&self) -> Option<&str> {
        let scalar = self.as_scalar()?;
        let is_known = matches!(scalar.resolve(), Resolved::Str) && !scalar.is_unresolved();
        is_known.then(|| scalar.text())
    }

    /// The value under `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Arc<Node>> {
        self.entry(key).map(|(_, node)| node)
    }

    /// Where `key` itself stands, if this is a map that has it.
    pub fn mark_of_key(&self, key: &str) -> Option<Mark> {
        self.entry(key).map(|(key, _)| key.at)
    }

    /// The node at `path`; `None` for the empty path, which is this node itself.
    pub fn find(&self, path: &Path) -> Option<&Arc<Node>> {
        let mut steps = path.steps().iter();
        let first = self.child(steps.next()?)?;
        steps.try_fold(first, |node, step| node.child(step))
    }

    /// The deepest node on the way to `path` that exists; this node at the least.
    pub fn nearest(&self, path: &Path) -> &Node {
        let mut node = self;
        for step in path.steps() {
            let Some(child) = node.child(step) else { break };
            node = child;
        }
        node
    }

    /// Returns this map with `key` set to `node`, in its old place or at the end; a node that is no
    /// map becomes one.
    pub fn with(&self, key: Key, node: Arc<Node>) -> Arc<Node> {
        let mut entries = self.as_map().map(<[_]>::to_vec).unwrap_or_default();
        match entries.iter_mut().find(|(known, _)| known.text == key.text) {
            Some(entry) => entry.1 = node,
            None => entries.push((key, node)),
        }
        Node::map(entries, self.at)
    }

    /// Returns this map without `key`.
    pub fn without(&self, key: &str) -> Arc<Node> {
        let mut entries = self.as_map().map(<[_]>::to_vec).unwrap_or_default();
        entries.retain(|(known, _)| &*known.text != key);
        Node::map(entries, self.at)
    }

    /// Returns the tree with every scalar for which `f` gives another replaced.
    ///
    /// Unchanged sub-trees are shared with the original, and a sub-tree shared by aliases is visited
    /// once. Keys are not visited.
    pub fn map_scalars<F>(self: &Arc<Node>, mut f: F) -> Arc<Node>
    where
        F: FnMut(&Scalar, Mark, &Trail<'_>) -> Option<Scalar>,
    {
        let mut rewrite = Rewrite { replace: &mut f, seen: HashMap::new() };
        rewrite.node(self, &Trail::root()).unwrap_or_else(|| Arc::clone(self))
    }

    fn entry(&self, key: &str) -> Option<&(Key, Arc<Node>)> {
        self.as_map()?.iter().find(|(known, _)| &*known.text == key)
    }

    fn child(&self, step: &Step) -> Option<&Arc<Node>> {
        match step {
            Step::Key(key) => self.get(key),
            Step::Index(index) => self.as_list()?.get(*index),
        }
    }
}

/// One walk of [`Node::map_scalars`]; `None` means unchanged.
struct Rewrite<'f, F> {
    replace: &'f mut F,
    seen: HashMap<*const Node, Option<Arc<Node>>>,
}

impl<F: FnMut(&Scalar, Mark, &Trail<'_>) -> Option<Scalar>> Rewrite<'_, F> {
    fn node(&mut self, node: &Arc<Node>, trail: &Trail<'_>) -> Option<Arc<Node>> {
        if Arc::strong_count(node) == 1 {
            return self.fresh(node, trail);
        }
        if let Some(known) = self.seen.get(&Arc::as_ptr(node)) {
            return known.clone();
        }
        let new = self.fresh(node, trail);
        self.seen.insert(Arc::as_ptr(node), new.clone());
        new
    }

    fn fresh(&mut self, node: &Node, trail: &Trail<'_>) -> Option<Arc<Node>> {
        match &node.value {
            Value::Null => None,
            Value::Scalar(scalar) => {
                (self.replace)(scalar, node.at, trail).map(|new| Node::scalar(new, node.at))
            }
            Value::List(items) => {
                let mut changed = None;
                for (index, item) in items.iter().enumerate() {
                    if let Some(new) = self.node(item, &trail.index(index)) {
                        changed.get_or_insert_with(|| items.clone())[index] = new;
                    }
                }
                changed.map(|items| Arc::new(Node::new(Value::List(items), node.at)))
            }
            Value::Map(entries) => {
                let mut changed = None;
                for (index, (key, item)) in entries.iter().enumerate() {
                    if let Some(new) = self.node(item, &trail.key(&key.text)) {
                        changed.get_or_insert_with(|| entries.clone())[index].1 = new;
                    }
                }
                changed.map(|entries| Arc::new(Node::new(Value::Map(entries), node.at)))
            }
        }
    }
}
