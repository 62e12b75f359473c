//! One layout for all documents: indentation, spaces, quotes and line breaks, by `pretty_yaml`. What a
//! document means, and its comments, stay; that is checked each time, not taken on trust.

use pretty_yaml::config::{FormatOptions, LanguageOptions, LayoutOptions};
use tollhouse_filters::tree::{Limits, Mark, Node, Value, parse_bytes};
use yaml_parser::SyntaxKind;

use super::{Files, Problems};

/// The longest line that a list or map in brackets may make.
const WIDTH: usize = 120;
/// Passes after which nothing may change any more; one is usual.
const PASSES: usize = 4;

/// Why a document was not formatted.
#[derive(Debug)]
pub enum Unformatted {
    /// It cannot be read.
    Problems(Problems),
    /// It can, but the formatter would not leave it as it was.
    Unsafe {
        /// Where, counted from 1, if that is known.
        line: Option<usize>,
        /// What would happen.
        why: String,
    },
}

/// The document in the one layout; `name` stands for it in messages. Formatting it again changes nothing.
///
/// # Errors
/// When it cannot be read, or would not be the same document afterwards.
pub fn format(bytes: &[u8], name: &str) -> Result<String, Unformatted> {
    let mut files = Files::default();
    let file = files.add(name.to_owned());
    let read = |bytes: &[u8]| parse_bytes(bytes, file, &Limits::default());
    let before = read(bytes).map_err(|errors| Unformatted::Problems(Problems::located(errors, &files)))?;
    let text = String::from_utf8_lossy(bytes);
    let formatted = settle(&text)?;
    let line = match read(formatted.as_bytes()) {
        Ok(after) => difference(&before, &after).map(|at| at.line as usize),
        Err(_) => return Err(unsafe_at(None, "what it would become could not be read")),
    };
    match line.map_or_else(|| lost_comment(&text, &formatted), |line| Ok(Some(line)))? {
        Some(line) => Err(unsafe_at(Some(line), "formatting would change it")),
        None => Ok(formatted),
    }
}

fn unsafe_at(line: Option<usize>, why: &str) -> Unformatted {
    Unformatted::Unsafe { line, why: why.to_owned() }
}

/// The line of the first comment that would not stay as it is.
fn lost_comment(before: &str, after: &str) -> Result<Option<usize>, Unformatted> {
    let (olds, news) = (comments(before)?, comments(after)?);
    let same = olds.iter().zip(&news).take_while(|(old, new)| old.text == new.text).count();
    let last = before.lines().count().max(1);
    Ok((same < olds.len().max(news.len())).then(|| olds.get(same).map_or(last, |old| old.line + 1)))
}

/// Formats until nothing changes.
fn settle(text: &str) -> Result<String, Unformatted> {
    let options = options();
    let mut last = text.to_owned();
    for _ in 0..PASSES {
        let next = pretty_yaml::format_text(&last, &options).map_err(unsupported)?;
        let next = align_comments(&last, &next)?;
        if next == last {
            return Ok(next);
        }
        last = next;
    }
    Err(unsafe_at(None, "formatting finds no end"))
}

fn options() -> FormatOptions {
    FormatOptions {
        layout: LayoutOptions { print_width: WIDTH, ..LayoutOptions::default() },
        // JSON stays JSON without trailing commas.
        language: LanguageOptions {
            trailing_comma: false,
            brace_spacing: false,
            ..LanguageOptions::default()
        },
    }
}

fn unsupported(error: yaml_parser::SyntaxError) -> Unformatted {
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default();
    unsafe_at(None, &format!("the formatter does not know this form of YAML: {line}"))
}

struct Comment {
    text: String,
    line: usize,
    /// It has the line for itself.
    alone: bool,
}

/// All comments, in order.
fn comments(text: &str) -> Result<Vec<Comment>, Unformatted> {
    let tree = yaml_parser::parse(text).map_err(unsupported)?;
    let tokens = tree.descendants_with_tokens().filter_map(|element| element.into_token());
    let (mut read, mut lines) = (0, 0);
    let comments = tokens.filter(|token| token.kind() == SyntaxKind::COMMENT).map(|token| {
        let start = usize::from(token.text_range().start());
        lines += text[read..start].matches('\n').count();
        read = start;
        let line = text[..start].rsplit('\n').next().unwrap_or_default();
        Comment { text: token.text().trim_end().to_owned(), line: lines, alone: line.trim().is_empty() }
    });
    Ok(comments.collect())
}

/// Puts a comment that stood straight above a line there again: after a list that was not indented
/// the formatter takes it for the list's.
fn align_comments(before: &str, after: &str) -> Result<String, Unformatted> {
    let (olds, news) = (comments(before)?, comments(after)?);
    let old_lines: Vec<&str> = before.lines().collect();
    let new_lines: Vec<&str> = after.lines().collect();
    let mut aligned: Vec<String> = new_lines.iter().map(|line| (*line).to_owned()).collect();
    for (old, new) in olds.iter().zip(&news).filter(|(old, new)| old.alone && new.alone) {
        if next_indent(&old_lines, old.line) == indent(old_lines[old.line])
            && let Some(indent) = next_indent(&new_lines, new.line)
        {
            aligned[new.line] = format!("{}{}", " ".repeat(indent), new.text);
        }
    }
    Ok(aligned.into_iter().map(|line| line + "\n").collect())
}

/// The indentation of the next line that is neither blank nor a comment; that of the whole at its end.
fn next_indent(lines: &[&str], line: usize) -> Option<usize> {
    let mut rest = lines.iter().skip(line + 1);
    let next = rest.find(|line| !matches!(line.trim_start().bytes().next(), None | Some(b'#')));
    next.map_or(Some(0), |next| indent(next))
}

fn indent(line: &str) -> Option<usize> {
    line.bytes().position(|byte| byte != b' ')
}

/// Where two trees do not mean the same: all but places and quotes counts.
fn difference(one: &Node, other: &Node) -> Option<Mark> {
    let same = match (&one.value, &other.value) {
        (Value::Null, Value::Null) => true,
        (Value::Scalar(one), Value::Scalar(other)) => {
            one.text() == other.text() && one.resolve() == other.resolve()
        }
        (Value::List(ones), Value::List(others)) if ones.len() == others.len() => {
            return ones.iter().zip(others).find_map(|(one, other)| difference(one, other));
        }
        (Value::Map(ones), Value::Map(others)) if ones.len() == others.len() => {
            return ones.iter().zip(others).find_map(|((key, one), (name, other))| {
                if key.text == name.text { difference(one, other) } else { Some(key.at) }
            });
        }
        _ => false,
    };
    (!same).then_some(one.at)
}

#[cfg(test)]
mod tests;
