//! What is wrong with a document, by file, line and column.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;
use tollhouse_filters::tree::{Error, Mark};

use super::Files;

/// A place in a named file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Place {
    /// The file as its user named it.
    pub file: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: u32,
    /// The column in characters, from 1; 0 for the file as a whole.
    pub column: u32,
}

/// One problem of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DocumentProblem")]
pub struct Problem {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// The keys that lead there, such as `routes[3].match.paths[0]`; empty for the whole document.
    pub path: String,
    /// Lower case, names the thing and the fix.
    pub message: String,
    /// A guess at what was meant, or the choices there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For duplicates: where the first one stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Place>,
}

/// All problems of a document, in the order in which they were found. In JSON a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Problems {
    /// The problems.
    pub list: Vec<Problem>,
    /// What was read or looked for, to be watched until somebody repairs it.
    #[serde(skip)]
    pub inputs: Vec<PathBuf>,
}

impl Problems {
    /// Puts names of files to the errors of a tree.
    pub fn located(errors: impl IntoIterator<Item = Error>, files: &Files) -> Problems {
        let list = errors.into_iter().map(|error| Problem::located(error, files)).collect();
        Problems { list, inputs: Vec::new() }
    }
}

impl Problem {
    fn located(error: Error, files: &Files) -> Problem {
        Problem {
            place: Place::located(error.at, files),
            path: error.path.to_string(),
            message: error.message,
            hint: error.hint,
            first: error.first.map(|first| Place::located(first, files)),
        }
    }
}

impl Place {
    fn located(mark: Mark, files: &Files) -> Place {
        Place { file: files.name(mark.file).to_owned(), line: mark.line, column: mark.column }
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line == 0 { Ok(()) } else { write!(f, ":{}:{}", self.line, self.column) }
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(first) = &self.first {
            write!(f, ", first at {first}")?;
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl Display for Problems {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
