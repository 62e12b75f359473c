//! Brackets that are moved to the right: `saphyr-parser` refuses some of those that close a list or map at the column
//! of its key (YAML 1.2.2 s8.2.3 does too), but many editors and formatters write them there.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Marker, ScalarStyle, Span};

/// Bytes that are read again at most because of brackets, or added to a document.
const MAX_WORK: usize = 64 << 20;
/// How far brackets are moved at once: further than keys are in what they close, nearly always.
const FAR: usize = 64;

/// A document with spaces before some brackets.
pub(super) struct Padded<'a> {
    pub(super) text: Cow<'a, str>,
    /// Spaces added, by line.
    pub(super) added: HashMap<usize, usize>,
    /// Bytes read again.
    work: usize,
}

impl<'a> Padded<'a> {
    /// A document as it is.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text: text.into(), added: HashMap::new(), work: 0 }
    }

    /// A document in which all brackets that lines begin with are moved, but for those on lines `but`; none where they
    /// are too many, or lines end in ways that only who reads it knows. Some may be [a part of a
    /// text](Self::in_scalar), and must not: who reads it sees that.
    pub(super) fn moved(text: &str, but: &HashSet<usize>) -> Option<Self> {
        // A line break of its own too (YAML 1.2.2 s5.4).
        let mut returns = text.match_indices('\r');
        if returns.any(|(at, _)| !text[at + 1..].starts_with('\n')) {
            return None;
        }
        let mut out = String::with_capacity(text.len() + text.len() / 4);
        let mut added = HashMap::new();
        let mut begins_text = false;
        for (line, written) in (1..).zip(text.split_inclusive('\n')) {
            let rest = written.trim_start_matches([' ', '\t']);
            out.push_str(&written[..written.len() - rest.len()]);
            // The first line of a block scalar says how far it is indented.
            if rest.starts_with([']', '}']) && !begins_text && !but.contains(&line) {
                if added.len() == MAX_WORK / FAR {
                    return None;
                }
                added.insert(line, FAR);
                out.extend(std::iter::repeat_n(' ', FAR));
            }
            out.push_str(rest);
            begins_text = is_header(written) || (begins_text && rest.trim_end().is_empty());
        }
        Some(Self { text: out.into(), added, work: 0 })
    }

    /// Lines with a moved bracket that is a part of this scalar.
    pub(super) fn in_scalar(&self, style: ScalarStyle, span: Span) -> impl Iterator<Item = usize> {
        // A block scalar begins where its content does, any other one behind what its first line begins with.
        let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        let first = span.start.line() + usize::from(!is_block);
        (first..=span.end.line()).filter(move |line| self.added.contains_key(line))
    }

    /// Moves the bracket at this place; not if there is none, or that has been done too often.
    pub(super) fn pad(&mut self, at: Marker) -> bool {
        let place = self.text.char_indices().nth(at.index());
        let Some((place, ']' | '}')) = place else { return false };
        self.work += self.text.len();
        if self.is_given_up() {
            return false;
        }
        *self.added.entry(at.line()).or_default() += 1;
        self.text.to_mut().insert(place, ' ');
        true
    }

    /// Whether more brackets would have to be moved than is worthwhile.
    pub(super) fn is_given_up(&self) -> bool {
        self.work > MAX_WORK
    }
}

/// Whether a block scalar begins behind this line (YAML 1.2.2 s8.1.1).
fn is_header(line: &str) -> bool {
    line.split_whitespace().next_back().is_some_and(|last| last.len() <= 3 && last.starts_with(['|', '>']))
}
