//! The consumers' file: what it says now, and what changed since it was last read.

use std::fs::{self, File, Metadata};
use std::hash::BuildHasher;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foldhash::quality::RandomState;
use memchr::memchr;
use memchr::memmem::Finder;
use tollhouse_filters::identity::consumers::{Clash, Clerk, Index, Layout, Record};
use tollhouse_filters::tree::Path;

use super::entry::{self, Entry};
use super::lines::{HashMap, HashSet, Line, LineReader, NOBODY, last_lines, length};
use super::picture::{Picture, Update};
use crate::source::{Place, Problem, Problems};

/// Most problems that are told.
const MOST_PROBLEMS: usize = 100;
/// A file that was read so soon after it was changed may have changed again without looking different: kernels tell
/// the time by ticks of up to 10 ms.
const TICK: Duration = Duration::from_millis(50);
/// The same for a file whose times are in whole seconds, as some file systems have them.
const COARSE_TICK: Duration = Duration::from_secs(2);
/// Who has written nothing in its place for so long is worth a look, although the file is open: a look at a large
/// file while all that follows a line is moved finds nothing, and lasts longer than the writer.
pub const PAUSE: Duration = Duration::from_millis(10);
/// Who has written nothing for so long is done.
pub const QUIET: Duration = Duration::from_millis(300);
/// The same for who has not closed a file that is shorter than it was, or closed it empty: consumers are not dropped
/// because they are still to be written.
pub(super) const LONG_QUIET: Duration = Duration::from_secs(10);
/// What is wrong with a file that nobody knows to be whole.
pub(super) const UNSURE: &str = "more of it may be still to come";

/// What a file looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(about: &Metadata) -> Self {
        let (device, inode, size) = (about.dev(), about.ino(), about.size());
        Self { device, inode, size, modified: (about.mtime(), about.mtime_nsec()) }
    }

    fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether every change after one of this age shows.
    fn is_sure(&self, age: Option<Duration>) -> bool {
        let tick = if self.modified.1 == 0 { COARSE_TICK } else { TICK };
        age.is_some_and(|age| age > tick)
    }
}

/// What was last read of a file.
#[derive(Debug)]
pub(super) struct Feed {
    path: PathBuf,
    /// How messages call it.
    shown: String,
    hasher: RandomState,
    picture: Picture,
    /// How far its lines reach, in bytes.
    length: u64,
    stamp: Option<Stamp>,
    /// A file with this stamp is as it was.
    is_sure: bool,
    /// Consumers that requests go by as lines say that were not taken yet; by the hashes of their names.
    pub(super) ahead: HashSet<u64>,
    /// A file with this stamp was whole, whether it was taken or refused.
    whole: Option<Stamp>,
}

/// How urgent a look at the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Somebody may be writing: lines at the end are taken at once, and what changed in its place after a pause;
    /// anything else is left until the writer is done.
    Early,
    /// Whoever wrote is done; if there are more lines, those are taken before anything else.
    Settled,
    /// Whoever wrote is done if nothing was written for a while; then all is looked at.
    Quiet,
}

/// What a look came to.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing has to be looked at.
    Same,
    /// What came at the end, and other consumers if it says so; the rest was not looked at.
    Partly(Option<Index>),
    /// All of it, and other consumers if it says so.
    Whole(Option<Index>),
    /// Somebody changes it in its place: another such look is needed after a pause.
    Busy,
    /// Not to be taken yet: another look is needed when the writer is done.
    Unsettled,
}

/// What a file says differently.
#[derive(Default)]
struct Change {
    without: Vec<Arc<str>>,
    with: Vec<Arc<Record>>,
}

/// What a line said, once it has been read.
#[derive(Clone)]
enum Said {
    Consumer(Arc<Record>),
    Gone,
}

impl Feed {
    pub(super) fn new(path: PathBuf) -> Self {
        let shown = path.display().to_string();
        let (hasher, picture, ahead) = (RandomState::default(), Picture::default(), HashSet::default());
        Self { path, shown, hasher, picture, length: 0, stamp: None, is_sure: false, ahead, whole: None }
    }

    /// Looks at the file, and makes what it says of the consumers that there are. Only what is given out as
    /// changed is remembered as seen.
    pub(super) fn look(&mut self, index: &Index, layout: &Layout, look: Look) -> Result<Seen, Problems> {
        let mut file = self.open()?;
        let about = file.metadata().map_err(|error| self.unreadable(&error))?;
        let stamp = Stamp::of(&about);
        let age = age(&about);
        let is_whole = stamp.size == self.length;
        if self.is_sure && self.stamp == Some(stamp) && is_whole && self.ahead.is_empty() {
            return Ok(Seen::Same);
        }
        let is_same_file = self.stamp.is_some_and(|seen| seen.is_same_file(&stamp));
        let is_same_size = is_same_file && is_whole;
        if look == Look::Early && is_same_size && age.is_some_and(|age| age < PAUSE) {
            return Ok(Seen::Busy);
        }
        if let Some(patience) = self.patience(is_same_file, stamp.size, look)
            && age.is_some_and(|age| age < patience)
        {
            return Ok(Seen::Unsettled);
        }
        if look != Look::Early {
            self.whole = Some(stamp);
        }
        let is_sure = stamp.is_sure(age);
        let mut reading = Reading::new(self, index, layout);
        let may_be_more = look != Look::Quiet && is_same_file && stamp.size > self.length;
        if may_be_more && self.ends_as_before(&mut file) {
            // Not worth a word before all was looked at.
            let Ok(changed) = reading.appended(&mut file) else { return Ok(Seen::Unsettled) };
            // Never sure: what was there before may have changed in its place.
            return self.take(index, changed, stamp, false).map(Seen::Partly).or(Ok(Seen::Unsettled));
        }
        if look == Look::Early && !is_same_size && self.stamp.is_some() {
            return Ok(Seen::Unsettled);
        }
        let changed = reading.whole(&mut file, stamp.size)?;
        let next = self.take(index, changed, stamp, is_sure)?;
        self.ahead.clear();
        Ok(Seen::Whole(next))
    }

    /// How long more of the file may be still to come, if that is so.
    fn patience(&self, is_same_file: bool, size: u64, look: Look) -> Option<Duration> {
        let is_shorter = size < self.length;
        match look {
            Look::Early => None,
            Look::Settled => (is_same_file && is_shorter && size == 0).then_some(LONG_QUIET),
            Look::Quiet if is_shorter => Some(LONG_QUIET),
            Look::Quiet => Some(QUIET),
        }
    }

    /// Why another feed is not to begin with the file as it is: who writes it may not be done.
    pub(super) fn under_way(&self) -> Option<Problems> {
        let about = fs::metadata(&self.path).ok()?;
        let stamp = Stamp::of(&about);
        let is_taken = self.stamp == Some(stamp) && stamp.size == self.length;
        let patience = self.patience(false, stamp.size, Look::Quiet);
        let is_young = patience.zip(age(&about)).is_some_and(|(patience, age)| age < patience);
        let is_unsure = is_young && !is_taken && self.whole != Some(stamp);
        let message = format!("{} was just changed; {UNSURE}", self.shown);
        is_unsure.then(|| self.problems(vec![self.problem(0, 0, &Path::default(), message)]))
    }

    /// Applies a change, and remembers what was seen if it can be.
    fn take(
        &mut self,
        index: &Index,
        (change, seen): Changed,
        stamp: Stamp,
        is_sure: bool,
    ) -> Result<Option<Index>, Problems> {
        let undo = self.picture.take(seen);
        let next = match change.with.is_empty() && change.without.is_empty() {
            true => Ok(None),
            false => index.changed(change.without.iter().map(|name| &**name), &change.with).map(Some),
        };
        match next {
            Ok(next) => {
                self.length = length(self.picture.lines());
                (self.stamp, self.is_sure) = (Some(stamp), is_sure);
                Ok(next)
            }
            Err(clashes) => {
                let problems = self.clashes(index, &clashes);
                self.picture.take(undo);
                Err(problems)
            }
        }
    }

    /// The last line about a consumer, whether it was taken yet or came since; none if the one that was taken is no
    /// more where it was. Of what came since, lines with something wrong are passed over.
    pub(super) fn newest(&self, index: &Index, layout: &Layout, name: &str) -> io::Result<Option<Vec<u8>>> {
        let (lines, hash) = (self.picture.lines(), index.hash_of(name));
        let found = last_lines(&[lines], &HashSet::from_iter([hash])).get(&hash).copied();
        let (Some((at, line)), Some(last)) = (found, lines.last()) else { return Ok(None) };
        let mut file = File::open(&self.path)?;
        let own = length(&lines[..at]);
        let Some(mut newest) = self.still(&mut file, own, line)? else { return Ok(None) };
        let begin = self.length - u64::from(last.length);
        let begin = match self.still(&mut file, begin, *last)? {
            Some(last) if last.ends_with(b"\n") => self.length,
            // Without its line break, it may have gone on since.
            Some(_) => begin,
            // Lines behind its own were changed in their places.
            None => own + u64::from(line.length),
        };
        file.seek(SeekFrom::Start(begin))?;
        let finder = Finder::new(name);
        // Reading each of a million would take long. With escapes, JSON writes a name in many ways.
        let may_be = |line: &[u8]| finder.find(line).is_some() || memchr(b'\\', line).is_some();
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            if may_be(&line) && is_about(&line, name, index, layout) {
                newest = line;
            }
        }
        Ok(Some(newest))
    }

    /// Notes that requests go by a line about a consumer that was not taken yet; by the hash of its name.
    pub(super) fn run_ahead(&mut self, name: u64) {
        self.ahead.insert(name);
    }

    /// A line, if it is still where it was.
    fn still(&self, file: &mut File, offset: u64, line: Line) -> io::Result<Option<Vec<u8>>> {
        match read_line(file, offset, line.length) {
            Ok(text) => Ok((self.hasher.hash_one(&*text) == line.hash).then_some(text)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(&self) -> Result<File, Problems> {
        let file = File::open(&self.path).map_err(|error| self.unreadable(&error))?;
        let is_file = file.metadata().is_ok_and(|about| about.is_file());
        is_file.then_some(file).ok_or_else(|| self.unreadable(&io::Error::other("not a file")))
    }

    fn unreadable(&self, error: &io::Error) -> Problems {
        let message = format!("cannot read {}: {error}", self.shown);
        self.problems(vec![self.problem(0, 0, &Path::default(), message)])
    }

    fn problems(&self, list: Vec<Problem>) -> Problems {
        Problems { list, inputs: vec![self.path.clone()] }
    }

    fn problem(&self, line: usize, column: u32, path: &Path, message: String) -> Problem {
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        let place = Place { file: self.shown.clone(), line, column };
        Problem { place, path: path.to_string(), message, hint: None, first: None }
    }

    /// Whether the last line seen before is still there, with its end.
    fn ends_as_before(&self, file: &mut File) -> bool {
        let Some(last) = self.picture.lines().last() else { return true };
        let line = self.still(file, self.length - u64::from(last.length), *last);
        line.is_ok_and(|line| line.is_some_and(|line| line.ends_with(b"\n")))
    }

    fn clashes(&self, index: &Index, clashes: &[Clash]) -> Problems {
        let names = clashes.iter().flat_map(|clash| [&clash.record, &clash.other]);
        let names: HashSet<u64> = names.map(|record| index.hash_of(&record.consumer().name)).collect();
        let lines = last_lines(&[self.picture.lines()], &names);
        let line =
            |record: &Record| lines.get(&index.hash_of(&record.consumer().name)).map_or(0, |(at, _)| at + 1);
        let list = clashes.iter().take(MOST_PROBLEMS).map(|clash| {
            let other = format!("line {}: {}", line(&clash.other), clash.other_path);
            self.problem(line(&clash.record), 1, &clash.path, format!("{other} {}", clash.what))
        });
        self.problems(list.collect())
    }
}

/// How long ago a file was changed; none if that is to come.
pub(super) fn age(about: &Metadata) -> Option<Duration> {
    SystemTime::now().duration_since(about.modified().ok()?).ok()
}

/// Whether a line is about this consumer, with nothing wrong with it.
fn is_about(line: &[u8], name: &str, index: &Index, layout: &Layout) -> bool {
    match entry::read(line) {
        Ok(Some(Entry::Gone(gone))) => gone.as_str() == name,
        Ok(Some(Entry::Consumer(spec))) if spec.name.as_str() == name => {
            let (record, errors) = Clerk::new(layout).record(*spec);
            errors.is_empty() && index.changed([], &[record]).is_ok()
        }
        Ok(_) | Err(_) => false,
    }
}

fn read_line(file: &mut File, offset: u64, length: u32) -> io::Result<Vec<u8>> {
    let mut line = vec![0; length as usize];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut line)?;
    Ok(line)
}

/// A reading of the file under way.
struct Reading<'a> {
    feed: &'a Feed,
    index: &'a Index,
    clerk: Clerk<'a>,
    problems: Vec<Problem>,
    /// Problems beyond those told.
    more: usize,
}

type Changed = (Change, Update);

impl<'a> Reading<'a> {
    fn new(feed: &'a Feed, index: &'a Index, layout: &'a Layout) -> Self {
        Self { feed, index, clerk: Clerk::new(layout), problems: Vec::new(), more: 0 }
    }

    /// Reads what was added at the end; a last line in the making is left there.
    fn appended(&mut self, file: &mut File) -> Result<Changed, Problems> {
        let unreadable = |error: io::Error| self.feed.unreadable(&error);
        file.seek(SeekFrom::Start(self.feed.length)).map_err(unreadable)?;
        let (mut lines, mut said) = (Vec::<Line>::new(), HashMap::default());
        let mut reader = LineReader::new(file);
        while let Some(line) = reader.next().map_err(|error| self.feed.unreadable(&error))? {
            if !line.ends_with(b"\n") && entry::read(line).is_err() {
                break;
            }
            let (name, what) = self.line(self.feed.picture.lines().len() + lines.len() + 1, line);
            lines.push(Line { name, ..Line::of(line, &self.feed.hasher) });
            said.extend(what.map(|what| (name, (lines.len(), what))));
        }
        let mut change = Change::default();
        let mut said: Vec<(u64, (usize, Said))> = said.into_iter().collect();
        said.sort_unstable_by_key(|(_, (at, _))| *at);
        said.into_iter().for_each(|(name, (_, what))| self.note(name, Some(what), &mut change));
        self.done((change, self.feed.picture.added(lines)))
    }

    /// Reads all of the file, of this size, and what differs twice.
    fn whole(&mut self, file: &mut File, size: u64) -> Result<Changed, Problems> {
        let feed = self.feed;
        let unreadable = |error: io::Error| feed.unreadable(&error);
        let found = feed.picture.difference(&*file, size, &feed.hasher).map_err(unreadable)?;
        let (offset, mut update) = (found.offset, found.update);
        let lines = feed.picture.lines();
        let old_middle = &lines[update.of.clone()];
        let known: HashMap<u64, u64> = old_middle.iter().map(|line| (line.hash, line.name)).collect();
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        let mut reader = LineReader::new(&mut *file);
        let mut said: Vec<Option<Said>> = Vec::with_capacity(update.lines.len());
        for (at, seen) in update.lines.iter_mut().enumerate() {
            let line = reader.next().map_err(unreadable)?.unwrap_or_default();
            if let Some(name) = known.get(&seen.hash) {
                seen.name = *name;
                said.push(None);
                continue;
            }
            if feed.hasher.hash_one(line) != seen.hash {
                return Err(feed.unreadable(&io::Error::other("it changes while it is read")));
            }
            let (name, what) = self.line(update.of.start + at + 1, line);
            seen.name = name;
            said.push(what);
        }
        let named = old_middle.iter().chain(&update.lines).map(|line| line.name);
        let named = named.filter(|name| *name != NOBODY).chain(feed.ahead.iter().copied());
        let names: HashSet<u64> = named.collect();
        let parts = [&lines[..update.of.start], &update.lines, &lines[update.of.end..]];
        let change = self.changed(file, &names, &parts, said).map_err(unreadable)?;
        self.done((change, update))
    }

    /// What is said of these consumers other than before. Of the lines now, those in the middle have been read.
    fn changed(
        &mut self,
        file: &mut File,
        names: &HashSet<u64>,
        parts: &[&[Line]; 3],
        said: Vec<Option<Said>>,
    ) -> io::Result<Change> {
        let mut change = Change::default();
        let (old, new) = (last_lines(&[self.feed.picture.lines()], names), last_lines(parts, names));
        let gone = names.iter().filter(|name| !new.contains_key(name));
        gone.for_each(|name| self.note(*name, None, &mut change));
        // In the file's order: of two that clash, the later one is at fault.
        let mut there: Vec<(usize, Line)> = new.into_values().collect();
        there.sort_unstable_by_key(|(at, _)| *at);
        for (at, line) in there {
            let is_as_before = old.get(&line.name).is_some_and(|(_, before)| before.hash == line.hash);
            if is_as_before && !self.feed.ahead.contains(&line.name) {
                continue;
            }
            let read = at.checked_sub(parts[0].len()).and_then(|at| said.get(at).cloned().flatten());
            let what = match read {
                Some(what) => Some(what),
                // A line from before that counts again, or still.
                None => {
                    let text =
                        read_line(file, length(parts.iter().copied().flatten().take(at)), line.length)?;
                    self.line(at + 1, &text).1
                }
            };
            self.note(line.name, what, &mut change);
        }
        Ok(change)
    }

    /// Notes what is said of a consumer; one that is gone may never have been there.
    fn note(&self, name: u64, said: Option<Said>, change: &mut Change) {
        match said {
            Some(Said::Consumer(record)) => change.with.push(record),
            Some(Said::Gone) | None => {
                let there = self.index.named_by(name);
                change.without.extend(there.map(|record| record.consumer().name.clone()));
            }
        }
    }

    /// Whom a line is about and what it says; problems are noted.
    fn line(&mut self, number: usize, line: &[u8]) -> (u64, Option<Said>) {
        match entry::read(line) {
            Ok(None) => (NOBODY, None),
            Ok(Some(Entry::Gone(name))) => (self.index.hash_of(name.as_str()), Some(Said::Gone)),
            Ok(Some(Entry::Consumer(spec))) => {
                let (record, errors) = self.clerk.record(*spec);
                for error in errors {
                    let column = entry::column(line, &error.path);
                    let problem = self.feed.problem(number, column, &error.path, error.message);
                    self.add(Problem { hint: error.hint, ..problem });
                }
                (self.index.hash_of(&record.consumer().name), Some(Said::Consumer(record)))
            }
            Err(errors) => {
                for error in errors {
                    let problem = self.feed.problem(number, error.at.column, &error.path, error.message);
                    self.add(Problem { hint: error.hint, ..problem });
                }
                (NOBODY, None)
            }
        }
    }

    fn add(&mut self, problem: Problem) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.more += 1;
        }
    }

    fn done<T>(&mut self, read: T) -> Result<T, Problems> {
        if self.problems.is_empty() {
            return Ok(read);
        }
        let mut list = std::mem::take(&mut self.problems);
        if self.more > 0 {
            let message = format!("{} more problems are not shown", self.more);
            list.push(self.feed.problem(0, 0, &Path::default(), message));
        }
        Err(self.feed.problems(list))
    }
}
