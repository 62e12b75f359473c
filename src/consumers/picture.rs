//! A file of lines as it was last seen: a hash of each line and of each block of lines, so that the next look reads
//! what is as before at the speed of memory, and finds what changed without keeping the text.

use std::hash::BuildHasher;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use foldhash::quality::RandomState;

use super::lines::{Line, LineReader, length};

/// What is compared at once, in bytes: it stays in the processor's cache.
const BLOCK: usize = if cfg!(test) { 4 << 10 } else { 256 << 10 };
/// Most bytes of lines in no block that are compared one by one: what was added within a second.
const MOST_TAIL: u64 = 8 << 20;

/// Lines that are compared at once. All of them end with a line break.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// Of all their bytes.
    hash: u64,
    bytes: u64,
    lines: usize,
}

/// A file as it was last seen.
#[derive(Debug, Default)]
pub(super) struct Picture {
    lines: Vec<Line>,
    /// From the first line on; some at the end may be in none.
    blocks: Vec<Block>,
}

/// Lines that stand where others stood.
#[derive(Debug)]
pub(super) struct Update {
    /// Which ones of those that there were.
    pub(super) of: Range<usize>,
    pub(super) lines: Vec<Line>,
    blocks_of: Range<usize>,
    blocks: Vec<Block>,
}

/// How a file differs from what was seen before.
#[derive(Debug)]
pub(super) struct Difference {
    /// The lines in between those at the beginning and at the end that are as before; their names are not known.
    pub(super) update: Update,
    /// Where they begin, in bytes.
    pub(super) offset: u64,
}

/// What is as before, in whole blocks; at the end, with lines that are in none.
#[derive(Debug, Default)]
struct Same {
    blocks: usize,
    lines: usize,
    bytes: u64,
}

impl Picture {
    /// The lines that there are.
    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Lines that were added at the end.
    pub(super) fn added(&self, lines: Vec<Line>) -> Update {
        let (end, blocks) = (self.lines.len(), self.blocks.len());
        Update { of: end..end, lines, blocks_of: blocks..blocks, blocks: Vec::new() }
    }

    /// Takes over what changed; gives what undoes it.
    pub(super) fn take(&mut self, update: Update) -> Update {
        let Update { of, lines, blocks_of, blocks } = update;
        let undo_of = of.start..of.start + lines.len();
        let undo_blocks = blocks_of.start..blocks_of.start + blocks.len();
        Update {
            lines: self.lines.splice(of, lines).collect(),
            of: undo_of,
            blocks: self.blocks.splice(blocks_of, blocks).collect(),
            blocks_of: undo_blocks,
        }
    }

    /// Finds out how a file of this size differs.
    pub(super) fn difference(
        &self,
        file: &impl FileExt,
        size: u64,
        hasher: &RandomState,
    ) -> io::Result<Difference> {
        // One that is small for a block can grow with what was added behind it.
        let is_small = self.blocks.last().is_some_and(|last| last.bytes < BLOCK as u64 / 2);
        let whole = self.blocks.len() - usize::from(is_small);
        let before = same_at_start(&self.blocks[..whole], file, size, hasher)?;
        let after = self.same_at_end(before.blocks..whole, file, [before.bytes, size], hasher)?;
        if let Some(found) = self.between(file, size, [&before, &after], hasher)? {
            return Ok(found);
        }
        let found = self.between(file, size, [&before, &Same::default()], hasher)?;
        found.ok_or_else(|| io::Error::other("it changes while it is read"))
    }

    /// What is as before at the end of a part of the file: of these blocks, and lines behind the last of them.
    fn same_at_end(
        &self,
        blocks: Range<usize>,
        file: &impl FileExt,
        [start, end]: [u64; 2],
        hasher: &RandomState,
    ) -> io::Result<Same> {
        let in_blocks: usize = self.blocks[..blocks.end].iter().map(|block| block.lines).sum();
        let tail = &self.lines[in_blocks..];
        let bytes = length(tail);
        if bytes > MOST_TAIL
            || end - start < bytes
            || !are_same(tail, At { file, at: end - bytes, end }, hasher)?
        {
            return Ok(Same::default());
        }
        let mut same = Same { blocks: self.blocks.len() - blocks.end, lines: tail.len(), bytes };
        let mut text = Vec::new();
        for block in self.blocks[blocks].iter().rev() {
            let Some(at) = (end - same.bytes).checked_sub(block.bytes).filter(|at| *at >= start) else {
                break;
            };
            if !block.is_at(file, at, &mut text, hasher)? {
                break;
            }
            same.add(block);
        }
        Ok(same)
    }

    /// Compares by lines what is between the start and the end that are as before; none if that end does not begin
    /// with a line.
    fn between(
        &self,
        file: &impl FileExt,
        size: u64,
        [before, after]: [&Same; 2],
        hasher: &RandomState,
    ) -> io::Result<Option<Difference>> {
        let old = &self.lines[before.lines..self.lines.len() - after.lines];
        let mut reader = LineReader::new(At { file, at: before.bytes, end: size - after.bytes });
        let (mut first, mut offset, mut lines) = (0, before.bytes, Vec::new());
        let (mut blocks, mut text, mut in_text, mut is_ended) = (Vec::new(), Vec::new(), 0, true);
        while let Some(line) = reader.next()? {
            let seen = Line::of(line, hasher);
            if lines.is_empty() && old.get(first).is_some_and(|old| old.hash == seen.hash) {
                (first, offset) = (first + 1, offset + line.len() as u64);
            } else {
                lines.push(seen);
            }
            is_ended = line.ends_with(b"\n");
            if is_ended {
                text.extend_from_slice(line);
                in_text += 1;
            }
            if text.len() >= BLOCK {
                blocks.push(Block::of(&text, in_text, hasher));
                (in_text, _) = (0, text.clear());
            }
        }
        if !is_ended && after.bytes > 0 {
            return Ok(None);
        }
        if in_text > 0 {
            blocks.push(Block::of(&text, in_text, hasher));
        }
        let last = old[first..].iter().rev().zip(lines.iter().rev());
        let last = last.take_while(|(old, line)| old.hash == line.hash).count();
        lines.truncate(lines.len() - last);
        let of = before.lines + first..self.lines.len() - after.lines - last;
        let blocks_of = before.blocks..self.blocks.len() - after.blocks;
        Ok(Some(Difference { offset, update: Update { of, lines, blocks_of, blocks } }))
    }
}

impl Block {
    fn of(text: &[u8], lines: usize, hasher: &RandomState) -> Self {
        Self { hash: hasher.hash_one(text), bytes: text.len() as u64, lines }
    }

    /// Whether it stands there; what is read is left in `text`.
    fn is_at(
        &self,
        file: &impl FileExt,
        at: u64,
        text: &mut Vec<u8>,
        hasher: &RandomState,
    ) -> io::Result<bool> {
        text.resize(usize::try_from(self.bytes).unwrap_or(usize::MAX), 0);
        file.read_exact_at(text, at)?;
        Ok(hasher.hash_one(&**text) == self.hash)
    }
}

impl Same {
    fn add(&mut self, block: &Block) {
        (self.blocks, self.lines) = (self.blocks + 1, self.lines + block.lines);
        self.bytes += block.bytes;
    }
}

/// How many of these blocks a file of this size begins with.
fn same_at_start(blocks: &[Block], file: &impl FileExt, size: u64, hasher: &RandomState) -> io::Result<Same> {
    let (mut same, mut text) = (Same::default(), Vec::new());
    for block in blocks {
        if size - same.bytes < block.bytes || !block.is_at(file, same.bytes, &mut text, hasher)? {
            break;
        }
        same.add(block);
    }
    Ok(same)
}

/// Whether these lines are what there is to read.
fn are_same(lines: &[Line], from: impl Read, hasher: &RandomState) -> io::Result<bool> {
    let mut reader = LineReader::new(from);
    for line in lines {
        if reader.next()?.is_none_or(|read| Line::of(read, hasher).hash != line.hash) {
            return Ok(false);
        }
    }
    Ok(reader.next()?.is_none())
}

/// A part of a file, read from its start.
struct At<'a, F> {
    file: &'a F,
    at: u64,
    end: u64,
}

impl<F: FileExt> Read for At<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = left.min(into.len());
        let read = self.file.read_at(&mut into[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory.
    struct Text<'a>(&'a [u8]);

    impl FileExt for Text<'_> {
        fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
            let rest = &self.0[usize::try_from(at).expect("small").min(self.0.len())..];
            let read = rest.len().min(into.len());
            into[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn difference(picture: &Picture, text: &str, hasher: &RandomState) -> Difference {
        picture.difference(&Text(text.as_bytes()), text.len() as u64, hasher).expect("read")
    }

    fn picture(text: &str, hasher: &RandomState) -> Picture {
        let mut picture = Picture::default();
        picture.take(difference(&picture, text, hasher).update);
        picture
    }

    /// That a picture is what the text is, and its blocks are where they say.
    fn is_of(picture: &Picture, text: &str, hasher: &RandomState) {
        let lines: Vec<Line> =
            text.split_inclusive('\n').map(|line| Line::of(line.as_bytes(), hasher)).collect();
        assert_eq!(picture.lines, lines);
        let same = same_at_start(&picture.blocks, &Text(text.as_bytes()), text.len() as u64, hasher);
        assert_eq!(same.expect("read").blocks, picture.blocks.len());
    }

    #[test]
    fn only_what_differs_is_in_the_middle() {
        let hasher = RandomState::default();
        let old = picture("a\nb\nc\nd\n", &hasher);
        for (text, expected) in [
            ("a\nb\nc\nd\n", (0, 0)),
            ("a\nb\nc\nd\ne\n", (0, 1)),
            ("a\nx\nc\nd\n", (1, 1)),
            ("a\nc\nd\n", (1, 0)),
            ("x\na\nb\nc\nd\n", (0, 1)),
            ("", (4, 0)),
            ("a\na\nb\nc\nd\n", (0, 1)),
            ("a\nb\nc\nd", (1, 1)),
            ("xa\nb\nc\nd\n", (1, 1)),
        ] {
            let update = difference(&old, text, &hasher).update;
            assert_eq!((update.of.len(), update.lines.len()), expected, "{text:?}");
        }
    }

    #[test]
    fn whatever_was_done_to_a_long_file_is_found_and_can_be_undone() {
        let hasher = RandomState::default();
        let line = |number: usize| format!("{number} {}\n", "x".repeat(number % 97));
        let mut lines: Vec<String> = (0..4000).map(line).collect();
        let mut seen = picture(&lines.concat(), &hasher);
        assert!(seen.blocks.len() > 4);
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..60 {
            let at = rng.usize(..lines.len());
            match round % 6 {
                0 => lines[at] = "other\n".to_owned(),
                1 => drop(lines.remove(at)),
                2 => lines.insert(at, line(round)),
                3 => lines.extend((0..rng.usize(1..400)).map(line)),
                4 => lines.truncate(lines.len() - rng.usize(..200)),
                // In two places far apart.
                _ => (lines[0], lines[at]) = (line(at), "further\n".to_owned()),
            }
            let (text, before) = (lines.concat(), seen.lines.clone());
            let undo = seen.take(difference(&seen, &text, &hasher).update);
            is_of(&seen, &text, &hasher);
            let redo = seen.take(undo);
            assert_eq!(seen.lines, before);
            seen.take(redo);
        }
        assert!(seen.blocks.len() < 200, "{}", seen.blocks.len());
    }

    #[test]
    fn what_stands_in_the_middle_of_a_line_is_no_line() {
        let hasher = RandomState::default();
        let long = "a line of some length\n".repeat(40_000);
        let mut seen = picture(&long, &hasher);
        // The last blocks are where they were from the end, but the first of them has something before it.
        let cut = format!("{}x{}", &long[..22 * 3], &long[22 * 20_000..]);
        seen.take(difference(&seen, &cut, &hasher).update);
        is_of(&seen, &cut, &hasher);
        // A last line without an end is another one when it has one.
        let open = cut.trim_end().to_owned();
        seen.take(difference(&seen, &open, &hasher).update);
        is_of(&seen, &open, &hasher);
        let longer = format!("{open} and more\n");
        seen.take(difference(&seen, &longer, &hasher).update);
        is_of(&seen, &longer, &hasher);
    }
}
