//! Where in a document: `routes[3].match.paths[0]`.

use std::fmt::{self, Display, Formatter, Write};

/// One step of a [`Path`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Into a map.
    Key(Box<str>),
    /// Into a list, from 0.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Step {
        Step::Key(key.into())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Step {
        Step::Index(index)
    }
}

/// The keys and indexes that lead from the root of a tree to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(Vec<Step>);

impl Path {
    /// The path of the root.
    pub fn new() -> Path {
        Path::default()
    }

    /// Goes one step down.
    pub fn push(&mut self, step: impl Into<Step>) {
        self.0.push(step.into());
    }

    /// Goes one step up.
    pub fn pop(&mut self) -> Option<Step> {
        self.0.pop()
    }

    /// Returns this path with one step more.
    pub fn join(&self, step: impl Into<Step>) -> Path {
        let mut path = self.clone();
        path.push(step);
        path
    }

    /// Returns `tail` seen from the root that this path starts from.
    pub fn concat(&self, tail: &Path) -> Path {
        self.0.iter().chain(&tail.0).cloned().collect()
    }

    /// The steps, from the root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether this is the path of the root.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S: Into<Step>> FromIterator<S> for Path {
    fn from_iter<I: IntoIterator<Item = S>>(steps: I) -> Path {
        Path(steps.into_iter().map(Into::into).collect())
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(item) => write!(f, "[{item}]")?,
                Step::Key(key) if !is_simple(key) => write!(f, "[{key:?}]")?,
                Step::Key(key) => {
                    if index > 0 {
                        f.write_char('.')?;
                    }
                    f.write_str(key)?;
                }
            }
        }
        Ok(())
    }
}

/// A path on the stack of a recursive walk: costs nothing until somebody asks for the [`Path`].
#[derive(Clone, Copy, Debug)]
pub struct Trail<'a> {
    above: Option<&'a Trail<'a>>,
    step: TrailStep<'a>,
}

#[derive(Clone, Copy, Debug)]
enum TrailStep<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> Trail<'a> {
    /// The trail of the root.
    pub fn root() -> Trail<'static> {
        Trail { above: None, step: TrailStep::Root }
    }

    /// The trail of the value under `key`.
    pub fn key(&'a self, key: &'a str) -> Trail<'a> {
        Trail { above: Some(self), step: TrailStep::Key(key) }
    }

    /// The trail of the item at `index`.
    pub fn index(&'a self, index: usize) -> Trail<'a> {
        Trail { above: Some(self), step: TrailStep::Index(index) }
    }

    /// The steps walked so far.
    pub fn path(&self) -> Path {
        let mut steps = Vec::new();
        let mut next = Some(self);
        while let Some(trail) = next {
            match trail.step {
                TrailStep::Root => {}
                TrailStep::Key(key) => steps.push(Step::from(key)),
                TrailStep::Index(index) => steps.push(Step::Index(index)),
            }
            next = trail.above;
        }
        steps.into_iter().rev().collect()
    }
}

fn is_simple(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
}
