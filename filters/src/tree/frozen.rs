//! A tree packed into bytes, for documents that are kept but rarely looked at.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{FileId, Key, Mark, Node, Scalar, Value};

/// A tree packed into bytes: a tenth of its size, everything about it kept but shared nodes, which
/// are written out.
#[derive(Clone, Debug)]
pub struct Frozen {
    bytes: Box<[u8]>,
    keys: Box<[Arc<str>]>,
}

/// What a packed node begins with.
const NULL: u8 = 0;
const SCALAR: u8 = 1;
const LIST: u8 = 2;
const MAP: u8 = 3;
/// Bits beside [`SCALAR`].
const QUOTED: u8 = 4;
const SUBSTITUTED: u8 = 8;
const LITERAL: u8 = 16;

impl Frozen {
    /// Packs a tree.
    #[must_use]
    pub fn new(root: &Node) -> Frozen {
        let mut packer = Packer::default();
        packer.node(root);
        Frozen { bytes: packer.bytes.into(), keys: packer.keys.into() }
    }

    /// The tree again.
    #[must_use]
    pub fn thaw(&self) -> Arc<Node> {
        Unpacker { rest: &self.bytes, keys: &self.keys }.node()
    }
}

#[derive(Default)]
struct Packer {
    bytes: Vec<u8>,
    keys: Vec<Arc<str>>,
    known: HashMap<Arc<str>, usize, RandomState>,
}

impl Packer {
    fn node(&mut self, node: &Node) {
        match &node.value {
            Value::Null => self.head(NULL, node.at),
            Value::Scalar(scalar) => {
                let quoted = if scalar.is_quoted() { QUOTED } else { 0 };
                let substituted = if scalar.is_substituted() { SUBSTITUTED } else { 0 };
                let literal = if scalar.literal().is_empty() { 0 } else { LITERAL };
                self.head(SCALAR | quoted | substituted | literal, node.at);
                self.number(scalar.text().len());
                self.bytes.extend_from_slice(scalar.text().as_bytes());
                if literal != 0 {
                    self.ranges(scalar.literal());
                }
            }
            Value::List(items) => {
                self.head(LIST, node.at);
                self.number(items.len());
                items.iter().for_each(|item| self.node(item));
            }
            Value::Map(entries) => {
                self.head(MAP, node.at);
                self.number(entries.len());
                for (key, value) in entries {
                    self.key(key);
                    self.node(value);
                }
            }
        }
    }

    fn key(&mut self, key: &Key) {
        let index = self.known.get(&key.text).copied().unwrap_or_else(|| {
            self.keys.push(key.text.clone());
            self.known.insert(key.text.clone(), self.keys.len() - 1);
            self.keys.len() - 1
        });
        self.number(index);
        self.mark(key.at);
    }

    fn ranges(&mut self, ranges: &[Range<usize>]) {
        self.number(ranges.len());
        for range in ranges {
            self.number(range.start);
            self.number(range.end);
        }
    }

    fn head(&mut self, kind: u8, at: Mark) {
        self.bytes.push(kind);
        self.mark(at);
    }

    fn mark(&mut self, at: Mark) {
        self.number(usize::from(at.file.0));
        self.number(at.line as usize);
        self.number(at.column as usize);
    }

    /// Seven bits a byte, the lowest first; the high bit says that more follow.
    fn number(&mut self, mut number: usize) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

/// Reads what [`Packer`] wrote and nothing else, so that its shape is known.
struct Unpacker<'a> {
    rest: &'a [u8],
    keys: &'a [Arc<str>],
}

impl Unpacker<'_> {
    fn node(&mut self) -> Arc<Node> {
        let kind = self.byte();
        let at = self.mark();
        let value = match kind {
            NULL => Value::Null,
            LIST => {
                let count = self.number();
                Value::List((0..count).map(|_| self.node()).collect())
            }
            MAP => {
                let count = self.number();
                Value::Map((0..count).map(|_| (self.key(), self.node())).collect())
            }
            flags => Value::Scalar(self.scalar(flags)),
        };
        Arc::new(Node::new(value, at))
    }

    fn scalar(&mut self, flags: u8) -> Scalar {
        let length = self.number();
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        let text = std::str::from_utf8(text).expect("packed from a str");
        let scalar = if flags & QUOTED == 0 { Scalar::plain(text) } else { Scalar::quoted(text) };
        let scalar = if flags & SUBSTITUTED == 0 { scalar } else { scalar.substitute(text) };
        if flags & LITERAL == 0 { scalar } else { scalar.with_literal(self.ranges()) }
    }

    fn ranges(&mut self) -> Vec<Range<usize>> {
        let count = self.number();
        (0..count).map(|_| self.number()..self.number()).collect()
    }

    fn key(&mut self) -> Key {
        let text = self.keys[self.number()].clone();
        Key { text, at: self.mark() }
    }

    fn mark(&mut self) -> Mark {
        let narrow = |number: usize| u32::try_from(number).expect("packed from a u32");
        let file = FileId(u16::try_from(self.number()).expect("packed from a u16"));
        let (line, column) = (narrow(self.number()), narrow(self.number()));
        Mark { file, line, column }
    }

    fn number(&mut self) -> usize {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            number |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return number;
            }
        }
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.rest.split_first().expect("packed whole");
        self.rest = rest;
        *first
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, parse};
    use super::*;

    fn parsed(text: &str) -> Arc<Node> {
        parse(text, FileId(3), &Limits::default()).expect("valid YAML")
    }

    #[test]
    fn a_tree_thaws_as_it_was_frozen() {
        let long = format!("text: '{}'", "ü".repeat(300));
        for text in ["", "a", "{a: 1, b: 'x', c: [~, {a: \"ü\"}, []], d: {}}", "- a: 1\n- a: 2\n", &long] {
            let tree = parsed(text);
            assert_eq!(Frozen::new(&tree).thaw(), tree, "{text}");
        }
        let tree = parsed("{a: x, b: 'y'}");
        let substituted = tree.map_scalars(|scalar, _, _| Some(scalar.substitute("z")));
        assert_eq!(Frozen::new(&substituted).thaw(), substituted);
        let partly = tree.map_scalars(|scalar, _, _| Some(scalar.clone().with_literal(vec![0..1, 1..300])));
        assert_eq!(Frozen::new(&partly).thaw(), partly);
    }

    #[test]
    fn shared_nodes_are_written_out() {
        let tree = parsed("{a: &x [1, 2], b: *x}");
        let thawed = Frozen::new(&tree).thaw();
        assert_eq!(thawed.get("a"), thawed.get("b"));
        assert_eq!(thawed.size(), tree.size());
    }
}
