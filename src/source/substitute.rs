//! `${env:NAME}`, `${env:NAME:-default}` and `${file:path}` in scalars; they do not nest.
//!
//! Load time replaces these and nothing else; what they stand for is never read again, neither as
//! YAML nor for more references nor as part of a template. Templates of run time (`${client.address}`)
//! have no colon and stay as they are, and so does their escape `$${`, which the template parser turns
//! into `${`. Only before `env:` and `file:` is `$${` resolved here, to the literal text `${env:` or
//! `${file:`.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tollhouse_filters::tree::{Error, Mark, Node, Scalar, Trail, Value, suggest};

use super::{Loader, read_regular};

/// Longest file that a reference may name.
const MAX_FILE: usize = 1 << 20;
/// Bytes that all references of one file may bring in.
const MAX_TOTAL: usize = 64 << 20;
const SCHEMES: [&str; 2] = ["env", "file"];

impl Loader<'_> {
    /// Returns the tree with all references replaced; what holds one that cannot be is an error, and unresolved.
    pub(super) fn substitute(&mut self, root: &Arc<Node>, base: Option<&Path>) -> Arc<Node> {
        let mut scope = Scope { loader: self, base, read: HashMap::new(), total: 0 };
        scope.check_keys(root, &Trail::root());
        root.map_scalars(|scalar, at, trail| scope.scalar(scalar, at, trail))
    }
}

/// The references of one file.
struct Scope<'l, 'a> {
    loader: &'l mut Loader<'a>,
    base: Option<&'l Path>,
    read: HashMap<PathBuf, Result<String, String>>,
    total: usize,
}

/// A piece of a scalar.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'t> {
    Text(&'t str),
    /// `$${` before `env:` or `file:`, which stands for `${`.
    Escape,
    Reference {
        scheme: &'t str,
        rest: &'t str,
    },
    Unclosed,
}

impl Scope<'_, '_> {
    fn scalar(&mut self, scalar: &Scalar, at: Mark, trail: &Trail<'_>) -> Option<Scalar> {
        if !scalar.text().contains("${") {
            return None;
        }
        let (mut text, mut referred, mut changed) = (String::new(), false, false);
        let mut literal: Vec<Range<usize>> = Vec::new();
        let told = self.loader.errors.len();
        for piece in pieces(scalar.text()) {
            let (start, is_written) = (text.len(), matches!(piece, Piece::Text(_)));
            let result = match piece {
                Piece::Text(piece) => {
                    text.push_str(piece);
                    Ok(())
                }
                Piece::Escape => {
                    changed = true;
                    text.push_str("${");
                    Ok(())
                }
                Piece::Unclosed => Err("a reference without its closing `}`".to_owned()),
                Piece::Reference { scheme, rest } => {
                    referred = true;
                    self.reference(scheme, rest).map(|value| text.push_str(&value))
                }
            };
            if let Err(message) = result {
                self.loader.errors.push(Error::new(at, message).on(trail.path()));
            }
            if !is_written && start < text.len() {
                literal.push(start..text.len());
            }
        }
        if self.loader.errors.len() > told {
            self.loader.unresolved.insert(at);
            return Some(scalar.unresolved());
        }
        let new = match (referred, changed) {
            (true, _) => scalar.substitute(text),
            (false, true) if scalar.is_quoted() => Scalar::quoted(text),
            (false, true) => Scalar::plain(text),
            (false, false) => return None,
        };
        Some(new.with_literal(literal))
    }

    fn reference(&mut self, scheme: &str, rest: &str) -> Result<String, String> {
        // It ended at the first `}`, which is the inner one's.
        if rest.contains("${") {
            let message = "references do not nest: a default and a path are plain text, without `${`";
            return Err(message.to_owned());
        }
        let value = match scheme {
            "env" => self.variable(rest),
            "file" => self.file(rest),
            _ => {
                let guess =
                    suggest(scheme, SCHEMES).map(|meant| format!(" (did you mean `${{{meant}:..}}`?)"));
                let guess = guess.unwrap_or_default();
                Err(format!(
                    "unknown reference `${{{scheme}:..}}`; there are `${{env:..}}` and `${{file:..}}`{guess}"
                ))
            }
        }?;
        self.total = self.total.saturating_add(value.len());
        if self.total > MAX_TOTAL {
            return Err(format!("references bring in more than {MAX_TOTAL} bytes"));
        }
        Ok(value)
    }

    /// As in a shell, a default stands in for a variable that is unset or empty.
    fn variable(&mut self, rest: &str) -> Result<String, String> {
        let (name, default) = match rest.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (rest, None),
        };
        if !is_variable(name) {
            return Err(format!("`{name}` is no name of an environment variable"));
        }
        let value = (self.loader.environment)(name);
        let seen = value.as_deref().map_or_else(|| "unset".to_owned(), |value| format!("={value}"));
        self.loader.recorder.record("env", name.as_bytes(), seen.as_bytes());
        match (value, default) {
            (Some(value), None) => Ok(value),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok(default.to_owned()),
            (None, None) => Err(format!(
                "environment variable `{name}` is not set; set it, or write `${{env:{name}:-default}}`"
            )),
        }
    }

    fn file(&mut self, name: &str) -> Result<String, String> {
        let Some(base) = self.base else {
            return Err("`${file:..}` is not available in a document from an API".to_owned());
        };
        if name.is_empty() {
            return Err("`${file:..}` needs a path".to_owned());
        }
        let path = base.join(name);
        if let Some(known) = self.read.get(&path) {
            return known.clone();
        }
        self.loader.inputs.insert(path.clone());
        let content = read_text(&path);
        if let Ok(content) = &content {
            let name = path.as_os_str().as_encoded_bytes();
            self.loader.recorder.record("reference", name, content.as_bytes());
        }
        self.read.insert(path, content.clone());
        content
    }

    /// A reference in a key would stay there unseen.
    fn check_keys(&mut self, node: &Node, trail: &Trail<'_>) {
        match &node.value {
            Value::Null | Value::Scalar(_) => {}
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.check_keys(item, &trail.index(index));
                }
            }
            Value::Map(entries) => {
                for (key, item) in entries {
                    let trail = trail.key(&key.text);
                    if key.text.contains("${")
                        && pieces(&key.text).any(|piece| !matches!(piece, Piece::Text(_)))
                    {
                        let message = "a reference cannot be part of a key";
                        self.loader.errors.push(Error::new(key.at, message).on(trail.path()));
                    }
                    self.check_keys(item, &trail);
                }
            }
        }
    }
}

/// The text of a file less one newline at its end.
fn read_text(path: &Path) -> Result<String, String> {
    let bytes = read_regular(path, MAX_FILE)?;
    let Ok(mut text) = String::from_utf8(bytes) else {
        return Err(format!("{} is not UTF-8 text", path.display()));
    };
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, next) = piece(rest);
        rest = next;
        Some(piece)
    })
}

/// The first piece of a text that is not empty, and what follows it.
fn piece(text: &str) -> (Piece<'_>, &str) {
    if let Some(inside) = text.strip_prefix("$${") {
        let ours = SCHEMES.iter().any(|known| scheme(inside) == Some(known));
        return (if ours { Piece::Escape } else { Piece::Text(&text[..3]) }, inside);
    }
    if let Some(inside) = text.strip_prefix("${")
        && let Some(scheme) = scheme(inside)
    {
        let content = &inside[scheme.len() + 1..];
        return match content.find('}') {
            Some(end) => (Piece::Reference { scheme, rest: &content[..end] }, &content[end + 1..]),
            None => (Piece::Unclosed, ""),
        };
    }
    let next = text.char_indices().skip(1).find(|(_, c)| *c == '$').map_or(text.len(), |(at, _)| at);
    (Piece::Text(&text[..next]), &text[next..])
}

/// The `env` of `env:NAME}`.
fn scheme(inside: &str) -> Option<&str> {
    let simple = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let (scheme, rest) = inside.split_at(inside.find(|c: char| !simple(c))?);
    (!scheme.is_empty() && rest.starts_with(':')).then_some(scheme)
}
