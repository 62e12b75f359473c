//! An error on its way up: first what serde said, then, at the innermost node, where and in words.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use serde::de::{self, Expected, Unexpected};

use crate::tree::{Error, Key, Node, Resolved, Scalar, Step, Value, suggest};

/// Longest text that a message quotes in full, in characters.
const QUOTED: usize = 60;

/// The error type of the deserializer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// As raised: no place known yet.
    Raised(Box<Kind>),
    /// With its place and message; the path grows on the way up.
    Located(Box<Located>),
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// What a type of the project (or a library) says about a value.
    Custom(String),
    /// A value of the wrong type, or of the right type but unfit.
    Unfit {
        expected: String,
        found: Found,
    },
    UnknownKey {
        key: String,
        known: &'static [&'static str],
    },
    UnknownVariant {
        name: String,
        known: &'static [&'static str],
    },
    NotOneKey {
        known: &'static [&'static str],
    },
    Missing(&'static str),
}

#[derive(Debug)]
pub(crate) enum Found {
    /// The node's own text, quoted unless it is hidden.
    Text,
    /// A kind of value, as its type is wrong.
    Kind(&'static str),
    Length(usize),
}

/// An error with what pruning needs to know about it.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) error: Error,
    pub(crate) class: Class,
    /// Steps from the innermost to the outermost.
    steps: Vec<Step>,
}

/// What kind of problem an error is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A key nobody knows, and the known one that was probably meant.
    Unknown(Option<&'static str>),
    /// A required key that is not there.
    Missing(&'static str),
    /// A reference that could not be resolved, as was told when that was tried.
    Unresolved,
    /// Anything else: prune the value.
    Value,
}

impl Located {
    /// Completes the path.
    pub(crate) fn finish(mut self) -> Located {
        self.error.path = self.steps.drain(..).rev().collect();
        self
    }
}

impl Fault {
    pub(super) fn no_variant(known: &'static [&'static str], found: &'static str) -> Fault {
        let expected = format!("one of {}", listed(known));
        Fault::from(Kind::Unfit { expected, found: Found::Kind(found) })
    }

    pub(super) fn not_one_key(known: &'static [&'static str]) -> Fault {
        Fault::from(Kind::NotOneKey { known })
    }

    /// Gives the error its place, if it has none yet.
    pub(crate) fn locate(self, node: &Arc<Node>, hidden: bool) -> Located {
        let kind = match self {
            Fault::Located(located) => return *located,
            Fault::Raised(kind) => *kind,
        };
        let (mut at, mut steps) = (node.at, Vec::new());
        if let Kind::UnknownKey { key, .. } = &kind
            && let Some(mark) = node.mark_of_key(key)
        {
            at = mark;
            steps.push(Step::from(key.as_str()));
        }
        let hidden = hidden || node.as_scalar().is_some_and(Scalar::is_substituted);
        let (message, hint, class) = kind.words(Some(node).filter(|_| !hidden), node);
        let is_unresolved = node.as_scalar().is_some_and(Scalar::is_unresolved);
        let class = if is_unresolved { Class::Unresolved } else { class };
        Located { error: Error { hint, ..Error::new(at, message) }, class, steps }
    }

    /// Gives the error the place of a key, if it has none yet.
    pub(super) fn locate_key(self, key: &Key) -> Fault {
        let kind = match self {
            Fault::Located(_) => return self,
            Fault::Raised(kind) => *kind,
        };
        let node = Node::string(&*key.text, key.at);
        let (message, hint, class) = kind.words(Some(&node), &node);
        let error = Error { hint, ..Error::new(key.at, message) };
        Fault::from(Located { error, class, steps: vec![Step::from(&*key.text)] })
    }
}

impl Located {
    /// Adds the step that led to the place.
    pub(super) fn below(mut self, step: Step) -> Fault {
        self.steps.push(step);
        Fault::from(self)
    }
}

impl From<Kind> for Fault {
    fn from(kind: Kind) -> Fault {
        Fault::Raised(Box::new(kind))
    }
}

impl From<Located> for Fault {
    fn from(located: Located) -> Fault {
        Fault::Located(Box::new(located))
    }
}

impl Kind {
    /// Message, hint and class; `shown` is the node if its text may be quoted.
    fn words(self, shown: Option<&Arc<Node>>, node: &Arc<Node>) -> (String, Option<String>, Class) {
        let quote = |known: &str| format!("did you mean `{known}`?");
        match self {
            Kind::Custom(message) => (custom(message, shown, node), None, Class::Value),
            Kind::Unfit { expected, found } => (unfit(&expected, &found, shown), None, Class::Value),
            Kind::UnknownKey { key, known } => {
                let meant = suggest(&key, known.iter().copied());
                let hint = meant.map_or_else(|| choices("known keys: ", known), quote);
                (format!("unknown key `{key}`"), Some(hint), Class::Unknown(meant))
            }
            Kind::UnknownVariant { name, known } => {
                let meant = suggest(&name, known.iter().copied()).filter(|_| shown.is_some());
                let hint = meant.map(quote);
                let found = shown.map_or_else(String::new, |_| format!(", found `{}`", shorten(&name)));
                (format!("expected one of {}{found}", listed(known)), hint, Class::Value)
            }
            Kind::NotOneKey { known } => {
                (format!("expected a map with exactly one key, one of {}", listed(known)), None, Class::Value)
            }
            Kind::Missing(key) => (format!("missing key `{key}`"), None, Class::Missing(key)),
        }
    }
}

/// The words of a type of the project, made safe and complete.
fn custom(message: String, shown: Option<&Arc<Node>>, node: &Arc<Node>) -> String {
    if shown.is_none() && node.as_scalar().is_some_and(|scalar| !scalar.text().is_empty()) {
        // Only a fixed sentence is known not to give away parts of the text.
        let safe = message.starts_with("expected ") && !leaks(&message, node);
        return if safe { message } else { "value is not accepted here (not shown)".to_owned() };
    }
    if leaks_below(&message, node) {
        return "a value in here is not accepted (not shown: it came through a reference)".to_owned();
    }
    let complete = !message.starts_with("expected ") || message.contains(", found ");
    match shown.and_then(|node| text_of(node)).filter(|_| !complete) {
        Some(text) => format!("{message}, found {text}"),
        None => message,
    }
}

fn unfit(expected: &str, found: &Found, shown: Option<&Arc<Node>>) -> String {
    let scalar = shown.and_then(|node| node.as_scalar());
    match found {
        Found::Length(length) => format!("expected {expected}, found {length} items"),
        Found::Text => match shown.and_then(|node| text_of(node)) {
            Some(text) => format!("expected {expected}, found {text}"),
            None => format!("expected {expected}"),
        },
        Found::Kind(kind) => {
            let advice = match scalar {
                Some(scalar) if expected == "a string" => {
                    format!(" (quote it: \"{}\")", shorten(scalar.text()))
                }
                Some(scalar) if scalar.is_quoted() && would_fit(expected, scalar) => {
                    format!(" (remove the quotes: {})", shorten(scalar.text()))
                }
                Some(scalar) if *kind == "a string" => {
                    return format!("expected {expected}, found {:?}", shorten(scalar.text()));
                }
                _ => String::new(),
            };
            format!("expected {expected}, found {kind}{advice}")
        }
    }
}

/// Whether the text would do without its quotes.
fn would_fit(expected: &str, scalar: &Scalar) -> bool {
    match Scalar::plain(scalar.text()).resolve() {
        Resolved::Bool(_) => expected.contains("true"),
        Resolved::Unsigned(_) | Resolved::Signed(_) => expected.contains("number"),
        Resolved::Float(_) => expected == "a number",
        Resolved::Null | Resolved::Str => false,
    }
}

/// A scalar as a message shows it: strings in quotes, numbers as they are.
fn text_of(node: &Node) -> Option<String> {
    let scalar = node.as_scalar()?;
    let text = shorten(scalar.text());
    Some(if matches!(scalar.resolve(), Resolved::Str) { format!("{text:?}") } else { text })
}

fn shorten(text: &str) -> String {
    let text = without_userinfo(text);
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.into_owned(),
    }
}

/// A URL without user and password (RFC 3986 s3.2.1); one that is wrong may have an `@` or a `/` in them.
fn without_userinfo(text: &str) -> Cow<'_, str> {
    let start = text.find("//").map(|at| at + 2).or_else(|| text.find(':').map(|at| at + 1));
    match (start, text.rfind('@')) {
        (Some(start), Some(end)) if start < end => format!("{}***{}", &text[..start], &text[end..]).into(),
        _ => text.into(),
    }
}

/// Whether a message gives away text that came through a reference, here or below.
fn leaks_below(message: &str, node: &Arc<Node>) -> bool {
    match &node.value {
        Value::Null => false,
        Value::Scalar(scalar) => scalar.is_substituted() && leaks(message, node),
        Value::List(items) => items.iter().any(|item| leaks_below(message, item)),
        Value::Map(entries) => entries.iter().any(|(_, item)| leaks_below(message, item)),
    }
}

fn leaks(message: &str, node: &Node) -> bool {
    let text = node.as_scalar().map_or("", |scalar| scalar.text().trim());
    // A short text is bound to occur inside words; it counts only where it stands alone.
    let alone = || message.split(|c: char| !c.is_alphanumeric()).any(|word| word == text);
    !text.is_empty() && if text.len() < 4 { alone() } else { message.contains(text) }
}

/// `` `a`, `b` ``, at most a line of them.
fn listed(names: &[&str]) -> String {
    let quoted = names.iter().map(|name| format!("`{name}`"));
    quoted.collect::<Vec<_>>().join(", ")
}

fn choices(before: &str, names: &[&str]) -> String {
    if names.is_empty() { "no key is known here".to_owned() } else { format!("{before}{}", names.join(", ")) }
}

/// What a node is, in words.
pub(super) fn kind_of(node: &Node) -> &'static str {
    match &node.value {
        Value::Null => "nothing",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
        Value::Scalar(scalar) => match scalar.resolve() {
            Resolved::Null => "nothing",
            Resolved::Bool(_) => "a boolean",
            Resolved::Unsigned(_) | Resolved::Signed(_) | Resolved::Float(_) => "a number",
            Resolved::Str => "a string",
        },
    }
}

fn kind_found(found: &Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a map",
        Unexpected::Unit | Unexpected::Option => "nothing",
        _ => "a string",
    }
}

/// serde's and the standard library's words for what they want, in the words of this project.
fn wanted(expected: &dyn Expected) -> String {
    let words = expected.to_string();
    let range = |low: &str, high: &str| format!("a whole number from {low} to {high}");
    match words.as_str() {
        "u8" => range("0", "255"),
        "u16" => range("0", "65535"),
        "u32" => range("0", "4294967295"),
        "u64" | "usize" => "a whole number, zero or more".to_owned(),
        "i8" => range("-128", "127"),
        "i16" => range("-32768", "32767"),
        "i32" => range("-2147483648", "2147483647"),
        "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "unit" => "nothing".to_owned(),
        _ if words.starts_with("a nonzero ") => "a whole number, one or more".to_owned(),
        _ if words.starts_with("struct ") => "a map".to_owned(),
        _ => words,
    }
}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Fault {
        Fault::from(Kind::Custom(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Fault {
        let found = Found::Kind(kind_found(&found));
        Fault::from(Kind::Unfit { expected: wanted(expected), found })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Fault {
        let found = match found {
            Unexpected::Seq => Found::Kind("a list"),
            Unexpected::Map => Found::Kind("a map"),
            _ => Found::Text,
        };
        Fault::from(Kind::Unfit { expected: wanted(expected), found })
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Fault {
        Fault::from(Kind::Unfit { expected: wanted(expected), found: Found::Length(length) })
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Fault {
        Fault::from(Kind::UnknownVariant { name: name.to_owned(), known })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Fault {
        Fault::from(Kind::UnknownKey { key: key.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Fault {
        Fault::from(Kind::Missing(key))
    }

    fn duplicate_field(key: &'static str) -> Fault {
        de::Error::custom(format_args!("key `{key}` is given twice, once under another name"))
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Located(located) => f.write_str(&located.error.message),
            // serde buffers some values and passes errors on as text.
            Fault::Raised(kind) => match &**kind {
                Kind::Custom(message) => f.write_str(message),
                Kind::Unfit { expected, .. } => write!(f, "expected {expected}"),
                Kind::UnknownKey { key, .. } => write!(f, "unknown key `{key}`"),
                Kind::UnknownVariant { known, .. } => write!(f, "expected one of {}", listed(known)),
                Kind::NotOneKey { .. } => f.write_str("expected a map with exactly one key"),
                Kind::Missing(key) => write!(f, "missing key `{key}`"),
            },
        }
    }
}

impl std::error::Error for Fault {}
