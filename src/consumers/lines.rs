//! Lines of a file, and what is remembered of each.

use std::hash::BuildHasher;
use std::io::{self, Read};

use foldhash::quality::RandomState;
use memchr::memchr;

/// The longest line, in bytes.
pub(super) const LONGEST: usize = 1 << 20;
/// What is read at a time: it stays in the processor's cache.
const BLOCK: usize = 256 << 10;

/// So many names are compared one by one.
const FEW: usize = 4;

/// Sets and maps of hashes.
pub(super) type HashSet<T> = std::collections::HashSet<T, RandomState>;
pub(super) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// One line of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    /// Of its bytes, with the line break.
    pub(super) hash: u64,
    /// Of the name of the consumer it is about; [`NOBODY`] for a blank one.
    pub(super) name: u64,
    /// In bytes, with the line break.
    pub(super) length: u32,
}

impl Line {
    /// A line about nobody known.
    pub(super) fn of(text: &[u8], hasher: &RandomState) -> Self {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        Self { hash: hasher.hash_one(text), name: NOBODY, length }
    }
}

/// The name on blank lines.
pub(super) const NOBODY: u64 = 0;

/// The last line of each of these consumers, by the hash of its name. The lines come in parts, one behind the
/// other.
pub(super) fn last_lines(parts: &[&[Line]], of: &HashSet<u64>) -> HashMap<u64, (usize, Line)> {
    let mut found = HashMap::with_capacity_and_hasher(of.len(), RandomState::default());
    // The usual case is one of a million.
    let few: Vec<u64> = of.iter().copied().take(FEW + 1).collect();
    let is_one = |name| if few.len() <= FEW { few.contains(&name) } else { of.contains(&name) };
    let mut end: usize = parts.iter().map(|part| part.len()).sum();
    for part in parts.iter().rev() {
        end -= part.len();
        for (at, line) in part.iter().enumerate().rev() {
            if found.len() == of.len() {
                return found;
            }
            if is_one(line.name) {
                found.entry(line.name).or_insert((end + at, *line));
            }
        }
    }
    found
}

/// How long lines are together, in bytes.
pub(super) fn length<'a>(lines: impl IntoIterator<Item = &'a Line>) -> u64 {
    lines.into_iter().map(|line| u64::from(line.length)).sum()
}

/// Reads lines with their line breaks; the last one may have none.
pub(super) struct LineReader<R> {
    from: R,
    buffer: Vec<u8>,
    /// What is read and not given out yet.
    start: usize,
    end: usize,
    number: usize,
}

impl<R: Read> LineReader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: vec![0; BLOCK], start: 0, end: 0, number: 0 }
    }

    /// The next line.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let mut searched = 0;
        let end = loop {
            match memchr(b'\n', &self.buffer[self.start + searched..self.end]) {
                Some(at) => break self.start + searched + at + 1,
                None => searched = self.end - self.start,
            }
            if searched > LONGEST {
                let message = format!("line {} is longer than 1 MiB", self.number + 1);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            if self.fill()? == 0 {
                break self.end;
            }
        };
        let line = &self.buffer[self.start..end];
        self.start = end;
        self.number += 1;
        Ok((!line.is_empty()).then_some(line))
    }

    /// Reads on behind what is there.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        loop {
            match self.from.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => {
                    let read = read?;
                    self.end += read;
                    return Ok(read);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_as_they_are_however_they_are_read() {
        /// Gives a byte at a time.
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
                self.0 = rest;
                into[0] = *first;
                Ok(1)
            }
        }
        let text = "a\n\nbc\nlast";
        let mut lines = LineReader::new(Slow(text.as_bytes()));
        let mut read = Vec::new();
        while let Some(line) = lines.next().expect("read") {
            read.push(String::from_utf8_lossy(line).into_owned());
        }
        assert_eq!(read, ["a\n", "\n", "bc\n", "last"]);
    }

    #[test]
    fn a_line_without_end_is_an_error_and_not_all_memory() {
        let mut lines = LineReader::new(io::repeat(b'x'));
        assert_eq!(lines.next().expect_err("too long").to_string(), "line 1 is longer than 1 MiB");
    }

    #[test]
    fn the_last_line_of_a_name_is_found_over_all_parts() {
        let lines: Vec<Line> = [1, 2, 1, NOBODY, 3].map(|name| Line { hash: 0, name, length: 1 }).into();
        for names in [vec![1, 2], vec![1, 2, 4, 5, 6, 7]] {
            let found = last_lines(&[&lines[..1], &lines[1..3], &lines[3..]], &names.into_iter().collect());
            let at = |name| found.get(&name).map(|(at, _)| *at);
            assert_eq!((at(1), at(2), at(3), at(4)), (Some(2), Some(1), None, None));
        }
    }
}
