//! What is wrong with a document, and where.

use std::fmt::{self, Display, Formatter};

use super::{Mark, Path};

/// One located problem of a document. The message never quotes substituted text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The innermost node (or key) concerned.
    pub at: Mark,
    /// A second place, for duplicates: where the first one stands.
    pub first: Option<Mark>,
    /// The keys and indexes that lead there.
    pub path: Path,
    /// Lower case, names the thing and the fix.
    pub message: String,
    /// A guess at what was meant, or the choices there are.
    pub hint: Option<String>,
}

impl Error {
    /// Makes an error at a place, without path or hint.
    pub fn new(at: Mark, message: impl Into<String>) -> Error {
        Error { at, first: None, path: Path::new(), message: message.into(), hint: None }
    }

    /// Adds the path.
    pub fn on(mut self, path: Path) -> Error {
        self.path = path;
        self
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds where the first one of two stands.
    pub fn first_at(mut self, first: Mark) -> Error {
        self.first = Some(first);
        self
    }

    /// Puts the path of the sub-tree that was read in front, so that the error can be shown among
    /// those of the whole document.
    pub fn under(mut self, prefix: &Path) -> Error {
        self.path = prefix.concat(&self.path);
        self
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.at.line, self.at.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(first) = self.first {
            write!(f, ", first at {}:{}", first.line, first.column)?;
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for Error {}
