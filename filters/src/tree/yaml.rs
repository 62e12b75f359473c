//! From text to tree: the events of `saphyr-parser`, checked and bounded.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::brackets::Padded;
use super::{Error, FileId, Key, Mark, Node, Path, Resolved, Scalar, Step, Value, scalar};

/// No document nests deeper, whatever the limits say: recursion over a tree must fit any stack.
const MAX_DEPTH: usize = 128;
/// Errors of one document that are worth reading.
const MAX_ERRORS: usize = 100;
/// How often a document is read with all its brackets moved; after the first time it is known which are in texts.
const MAX_GUESSES: usize = 3;
/// Keys of one map up to which comparing each with each beats hashing.
const SMALL_MAP: usize = 16;

/// How much a document may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length of the text.
    pub bytes: usize,
    /// Levels of nesting, at most 128.
    pub depth: usize,
    /// Nodes with every alias written out.
    pub nodes: usize,
}

impl Default for Limits {
    /// 64 MiB, 64 levels, 2,000,000 nodes.
    fn default() -> Limits {
        Limits { bytes: 64 << 20, depth: 64, nodes: 2_000_000 }
    }
}

/// Reads one document; an empty one is null.
///
/// # Errors
/// The first syntax error or exceeded limit, after every duplicate or unusable key before it.
pub fn parse(text: &str, file: FileId, limits: &Limits) -> Result<Arc<Node>, Vec<Error>> {
    check_text(text, file, limits).map_err(|error| vec![error])?;
    let mut padded = Padded::new(text);
    let mut found = read(&padded, file, limits);
    if found.bracket.is_none() {
        return found.root;
    }
    // All brackets at once, where that will do, else one by one.
    let guessed = match read_moved(text, file, limits) {
        Some(Ok(root)) => return Ok(root),
        guessed => guessed,
    };
    while found.bracket.is_some_and(|bracket| padded.pad(bracket)) {
        found = read(&padded, file, limits);
    }
    guessed.filter(|_| padded.is_given_up()).unwrap_or(found.root)
}

/// Reads a document in which all brackets that lines begin with are moved, but for those in texts; none where they
/// are too many.
fn read_moved(text: &str, file: FileId, limits: &Limits) -> Option<Result<Arc<Node>, Vec<Error>>> {
    let mut texts = HashSet::new();
    for _ in 0..MAX_GUESSES {
        let found = read(&Padded::moved(text, &texts)?, file, limits);
        if found.texts.is_empty() {
            return Some(found.root);
        }
        // What is wrong may be so because of these.
        texts.extend(found.texts);
    }
    None
}

/// What was read.
struct Found {
    root: Result<Arc<Node>, Vec<Error>>,
    /// Where a bracket stands too far to the left, so that no more was read.
    bracket: Option<Marker>,
    /// Lines with a moved bracket that is a part of a text.
    texts: Vec<usize>,
}

fn read(padded: &Padded<'_>, file: FileId, limits: &Limits) -> Found {
    let mut builder = Builder::new(file, limits, &padded.added);
    let mut parser = Parser::new_from_str(&padded.text);
    let (mut bracket, mut texts) = (None, Vec::new());
    let done = loop {
        match parser.next_event() {
            None | Some(Ok((Event::StreamEnd, _))) => break Ok(()),
            Some(Ok((event, span))) => {
                if let Event::Scalar(_, style, ..) = &event {
                    texts.extend(padded.in_scalar(*style, span));
                }
                if let Err(error) = builder.event(event, builder.mark(&span.start)) {
                    break Err(error);
                }
            }
            Some(Err(error)) => {
                bracket = (error.info() == "invalid indentation").then(|| *error.marker());
                break Err(builder.syntax(error.marker(), error.info()));
            }
        }
    };
    let mut errors = builder.errors;
    errors.extend(done.err());
    let nothing = || Node::null(Mark { file, line: 1, column: 1 });
    let root = if errors.is_empty() { Ok(builder.root.unwrap_or_else(nothing)) } else { Err(errors) };
    Found { root, bracket, texts }
}

/// Reads one document from bytes that should be UTF-8.
///
/// # Errors
/// As [`parse`], and where the bytes stop being UTF-8.
pub fn parse_bytes(bytes: &[u8], file: FileId, limits: &Limits) -> Result<Arc<Node>, Vec<Error>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text, file, limits),
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let at = mark_after(&before, file);
            Err(vec![Error::new(at, "not UTF-8 text; save the file as UTF-8")])
        }
    }
}

fn check_text(text: &str, file: FileId, limits: &Limits) -> Result<(), Error> {
    let start = Mark { file, line: 1, column: 1 };
    if text.len() > limits.bytes {
        let message = format!("file is {} bytes long, over the limit of {}", text.len(), limits.bytes);
        return Err(Error::new(start, message));
    }
    if text.starts_with('\u{feff}') {
        let message = "file begins with a byte order mark; save it as UTF-8 without one";
        return Err(Error::new(start, message));
    }
    let odd = |byte: u8| byte == 0x7f || (byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r'));
    match text.bytes().position(odd) {
        None => Ok(()),
        Some(at) => {
            let byte = text.as_bytes()[at];
            let message =
                format!("control character 0x{byte:02x}; in a quoted string write \"\\x{byte:02x}\"");
            Err(Error::new(mark_after(&text[..at], file), message))
        }
    }
}

/// The place of the character that follows `before`.
fn mark_after(before: &str, file: FileId) -> Mark {
    let line = 1 + before.bytes().filter(|&byte| byte == b'\n').count();
    let column = 1 + before.rsplit('\n').next().unwrap_or("").chars().count();
    Mark { file, line: narrow(line), column: narrow(column) }
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

struct Builder<'a> {
    file: FileId,
    /// Spaces that were added, by line.
    added: &'a HashMap<usize, usize>,
    depth: usize,
    max_nodes: usize,
    nodes: usize,
    stack: Vec<Frame>,
    /// Items of open lists, those of the innermost last: a list is made once it is known how long it is.
    items: Vec<Arc<Node>>,
    /// Entries of open maps, likewise.
    entries: Vec<(Key, Arc<Node>)>,
    anchors: HashMap<usize, Arc<Node>>,
    root: Option<Arc<Node>>,
    documents: usize,
    errors: Vec<Error>,
    keys: Keys,
}

/// Texts of keys, each held once: a long list of alike items has few.
#[derive(Default)]
struct Keys(HashSet<Arc<str>, RandomState>);

impl Keys {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.0.insert(text.clone());
        text
    }
}

/// A list or map that is still open.
struct Frame {
    at: Mark,
    anchor: usize,
    open: Open,
}

enum Open {
    /// A list, and where its items begin.
    List(usize),
    /// A map, where its entries begin, and the key whose value comes next.
    Map(usize, Option<Key>),
}

impl<'a> Builder<'a> {
    fn new(file: FileId, limits: &Limits, added: &'a HashMap<usize, usize>) -> Self {
        Self {
            file,
            added,
            depth: limits.depth.min(MAX_DEPTH),
            max_nodes: limits.nodes,
            nodes: 0,
            stack: Vec::new(),
            items: Vec::new(),
            entries: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            documents: 0,
            errors: Vec::new(),
            keys: Keys::default(),
        }
    }

    fn mark(&self, at: &Marker) -> Mark {
        // saphyr counts lines from 1 and columns from 0.
        let added = self.added.get(&at.line()).copied().unwrap_or_default();
        let column = at.col().saturating_sub(added) + 1;
        Mark { file: self.file, line: narrow(at.line().max(1)), column: narrow(column) }
    }

    fn syntax(&self, at: &Marker, info: &str) -> Error {
        Error::new(self.mark(at), format!("not YAML: {info}")).on(self.path())
    }

    fn event(&mut self, event: Event<'_>, at: Mark) -> Result<(), Error> {
        match event {
            Event::DocumentStart(_) => self.document(at),
            Event::Scalar(text, style, anchor, tag) => self.scalar(text, style, anchor, tag, at),
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::SequenceStart(anchor, tag) => {
                let open = Open::List(self.items.len());
                self.open(Frame { at, anchor, open }, tag.as_deref(), "seq")
            }
            Event::MappingStart(anchor, tag) => {
                let open = Open::Map(self.entries.len(), None);
                self.open(Frame { at, anchor, open }, tag.as_deref(), "map")
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn document(&mut self, at: Mark) -> Result<(), Error> {
        self.documents += 1;
        if self.documents == 1 {
            return Ok(());
        }
        Err(Error::new(at, "a second document in one file; remove the `---` or make it a file of its own"))
    }

    fn open(&mut self, frame: Frame, tag: Option<&Tag>, expected: &str) -> Result<(), Error> {
        if self.wants_key() {
            return Err(self.error(frame.at, "a list or map cannot be a key; quote it if text is meant"));
        }
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == expected)
        {
            return Err(self.bad_tag(tag, frame.at));
        }
        self.check_depth(self.stack.len() + 1, frame.at)?;
        self.count(1, frame.at)?;
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let value = match frame.open {
            Open::List(first) => Value::List(self.items.drain(first..).collect()),
            Open::Map(first, _) => {
                self.report_repeated(first);
                Value::Map(self.entries.drain(first..).collect())
            }
        };
        self.place(Arc::new(Node::new(value, frame.at)), frame.anchor);
        Ok(())
    }

    fn scalar(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
        at: Mark,
    ) -> Result<(), Error> {
        let plain = style == ScalarStyle::Plain;
        let plain = match tag {
            Some(tag) => self.tagged(&tag, &text, at)?,
            None => plain,
        };
        if self.wants_key() {
            if anchor != 0 {
                self.anchors.insert(anchor, Node::string(&*text, at));
            }
            return self.key(text, plain, at);
        }
        self.count(1, at)?;
        let value = match plain {
            true if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") => Value::Null,
            true => Value::Scalar(Scalar::plain(text)),
            false => Value::Scalar(Scalar::quoted(text)),
        };
        self.place(Arc::new(Node::new(value, at)), anchor);
        Ok(())
    }

    /// Whether the tag makes the text a plain scalar (`!!int "8"`) or a string (`!!str 8`).
    fn tagged(&self, tag: &Tag, text: &str, at: Mark) -> Result<bool, Error> {
        if !tag.is_yaml_core_schema() {
            return Err(self.bad_tag(tag, at));
        }
        let resolved = scalar::resolve(text);
        let fits = match tag.suffix.as_str() {
            "str" => return Ok(false),
            "null" => matches!(resolved, Resolved::Null),
            "bool" => matches!(resolved, Resolved::Bool(_)),
            "int" => matches!(resolved, Resolved::Unsigned(_) | Resolved::Signed(_)),
            "float" => {
                matches!(resolved, Resolved::Float(_) | Resolved::Unsigned(_) | Resolved::Signed(_))
            }
            _ => return Err(self.bad_tag(tag, at)),
        };
        let wrong = || self.error(at, format!("value does not fit its tag `!!{}`", tag.suffix));
        if fits { Ok(true) } else { Err(wrong()) }
    }

    fn alias(&mut self, anchor: usize, at: Mark) -> Result<(), Error> {
        let Some(node) = self.anchors.get(&anchor).map(Arc::clone) else {
            return Err(self.error(at, "alias to a value that contains it; nothing can contain itself"));
        };
        if self.wants_key() {
            return match &node.value {
                Value::Scalar(scalar) => self.key(Cow::from(scalar.text()), !scalar.is_quoted(), at),
                _ => Err(self.error(at, "a key cannot be a list, a map or empty; quote it if text is meant")),
            };
        }
        self.check_depth(self.stack.len() + node.height(), at)?;
        self.count(node.size(), at)?;
        self.place(node, 0);
        Ok(())
    }

    fn key(&mut self, text: Cow<'_, str>, plain: bool, at: Mark) -> Result<(), Error> {
        // A bad key is reported and kept, so that its value finds its place.
        if plain && text == "<<" {
            let message = "merge keys (`<<`) are not YAML 1.2; write the keys out, or share with an alias";
            self.report(at, message);
        } else if plain && text.is_empty() {
            self.report(at, "a key is missing before the `:`");
        }
        let text = self.keys.share(&text);
        if let Some(Frame { open: Open::Map(_, key), .. }) = self.stack.last_mut() {
            *key = Some(Key { text, at });
        }
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Arc<Node>, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, Arc::clone(&node));
        }
        match self.stack.last_mut().map(|frame| &mut frame.open) {
            None => self.root = Some(node),
            Some(Open::List(_)) => self.items.push(node),
            Some(Open::Map(_, key)) => {
                let key = key.take().expect("a value follows its key, scalar or refused");
                self.entries.push((key, node));
            }
        }
    }

    /// Reports each key given twice of the map whose entries begin here; who reads such a document gets no tree.
    fn report_repeated(&mut self, start: usize) {
        for (index, first) in repeats(&self.entries[start..]) {
            let (key, first) = (&self.entries[start + index].0, self.entries[start + first].0.at);
            let path = self.path().join(&*key.text);
            let error = Error::new(key.at, format!("duplicate key `{}`", key.text));
            self.push(error.on(path).first_at(first));
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { open: Open::Map(_, None), .. }))
    }

    fn check_depth(&self, depth: usize, at: Mark) -> Result<(), Error> {
        let message = || format!("nested more than {} levels deep", self.depth);
        if depth <= self.depth { Ok(()) } else { Err(self.error(at, message())) }
    }

    fn count(&mut self, nodes: usize, at: Mark) -> Result<(), Error> {
        self.nodes = self.nodes.saturating_add(nodes);
        let message = || format!("more than {} values, aliases written out", self.max_nodes);
        if self.nodes <= self.max_nodes { Ok(()) } else { Err(self.error(at, message())) }
    }

    fn bad_tag(&self, tag: &Tag, at: Mark) -> Error {
        let name = if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix) } else { tag.to_string() };
        self.error(at, format!("tag `{name}` is not supported here; remove it"))
    }

    fn error(&self, at: Mark, message: impl Into<String>) -> Error {
        Error::new(at, message).on(self.path())
    }

    fn report(&mut self, at: Mark, message: &str) {
        let error = self.error(at, message);
        self.push(error);
    }

    fn push(&mut self, error: Error) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// The path of the value that is being read.
    fn path(&self) -> Path {
        let firsts = self.stack.iter().filter_map(|frame| match frame.open {
            Open::List(first) => Some(first),
            Open::Map(..) => None,
        });
        // The items of a list end where those of the next one begin.
        let mut ends = firsts.skip(1).chain([self.items.len()]);
        let steps = self.stack.iter().filter_map(|frame| match &frame.open {
            Open::List(first) => ends.next().map(|end| Step::Index(end - first)),
            Open::Map(_, key) => key.as_ref().map(|key| Step::from(&*key.text)),
        });
        steps.collect()
    }
}

/// Pairs of (repeated key, its first occurrence), in order.
fn repeats(entries: &[(Key, Arc<Node>)]) -> Vec<(usize, usize)> {
    let keys = entries.iter().map(|(key, _)| &*key.text).enumerate();
    if entries.len() <= SMALL_MAP {
        let first = |text: &str| entries.iter().position(|(key, _)| &*key.text == text);
        return keys.filter_map(|(i, text)| first(text).filter(|&f| f < i).map(|f| (i, f))).collect();
    }
    let mut seen = HashMap::with_capacity(entries.len());
    keys.filter_map(|(i, text)| {
        let first = *seen.entry(text).or_insert(i);
        (first < i).then_some((i, first))
    })
    .collect()
}
