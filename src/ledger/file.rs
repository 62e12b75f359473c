//! The file itself: one SQLite table of units by digest and slot.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, Error, ErrorCode, params};
use tollhouse_filters::world::TallyRow;

/// How long another process may have the file for itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// The layout below.
const VERSION: i64 = 1;
const LAYOUT: &str = "
    CREATE TABLE IF NOT EXISTS used (
        id BLOB NOT NULL, slot INTEGER NOT NULL, used INTEGER NOT NULL, ends INTEGER NOT NULL,
        PRIMARY KEY (id, slot)
    ) WITHOUT ROWID;
    PRAGMA user_version = 1;";
const ADD: &str = "
    INSERT INTO used VALUES (?1, ?2, max(0, ?3), ?4)
    ON CONFLICT DO UPDATE SET used = max(0, used + ?3), ends = max(ends, excluded.ends)
    RETURNING used";
const RAISE: &str = "
    INSERT INTO used VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT DO UPDATE SET used = max(used, excluded.used), ends = max(ends, excluded.ends)";
/// All rows of a quota one after the other: between quotas, memory makes room.
const READ: &str = "SELECT id, slot, used, ends FROM used WHERE ends > ?1 ORDER BY id";
const DROP: &str = "
    DELETE FROM used WHERE id BETWEEN ?1 AND ?2
    AND (used = 0 OR ends <= ?3 AND ends NOT BETWEEN ?4 AND ?5)";
const COUNT: &str = "SELECT count(*) FROM used WHERE id BETWEEN ?1 AND ?2";
const THIN: &str = "
    DELETE FROM used WHERE id BETWEEN ?1 AND ?2 AND (id, slot) IN (
        SELECT id, slot FROM (
            SELECT id, slot, total(used) OVER (PARTITION BY id) AS all_of_it
            FROM used WHERE id BETWEEN ?1 AND ?2
        ) ORDER BY all_of_it DESC, id, slot DESC LIMIT -1 OFFSET ?3
    )";

/// Rows that are read at a time.
const TOGETHER: usize = 1024;
/// Digests fill the file evenly; it is cut by their first byte into parts that each take little time.
const PARTS: usize = 256;
/// Most rows that a part is left with: five million in all, of which each quota has one, or up to 61 where its
/// window rolls.
const MOST_IN_PART: usize = if cfg!(test) { 8 } else { 20_000 };
/// So many rows are written for each part that is looked through: in a whole round, the file grows by a quarter.
const WRITTEN_A_PART: usize = MOST_IN_PART / 4;
/// For so many seconds is kept what ended before this process began, as long as there is room: a clock that is ahead
/// when a machine comes up is set right soon.
const LONG: i64 = 7 * 24 * 60 * 60;
/// Of times that end before they begin, nothing is kept.
const NEVER: (i64, i64) = (1, 0);

/// The file, which is made when there is something to write.
pub struct File {
    path: PathBuf,
    open: Option<Open>,
    /// Whether it was read once: one that is made after that knows less than we do.
    known: bool,
    /// The part that is looked through next.
    part: u8,
    /// When this process began, in Unix seconds.
    pub(super) began: i64,
}

struct Open {
    connection: Connection,
    /// Device and file, to notice when another file or none is in its place.
    inode: (u64, u64),
}

impl File {
    /// The file at this path, which nothing is done with yet.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, open: None, known: false, part: 0, began: now() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is known what it knows.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Tells, some rows at a time, what it knows that still counts; nothing if there is no file.
    pub(super) fn load(&mut self, mut tell: impl FnMut(&[TallyRow])) -> Result<(), Error> {
        if !self.path.exists() {
            self.known = true;
            return Ok(());
        }
        self.using(|file| {
            file.opened()?;
            let Some(open) = &file.open else { return Ok(()) };
            let mut query = open.connection.prepare(READ)?;
            let mut found = query.query([now()])?;
            let mut rows = Vec::with_capacity(TOGETHER);
            while let Some(row) = found.next()? {
                let (id, slot, ends): (Vec<u8>, i64, i64) = (row.get(0)?, row.get(1)?, row.get(3)?);
                rows.push(TallyRow {
                    id: id_of(&id),
                    slot: slot.cast_unsigned(),
                    used: row.get(2)?,
                    ends: ends.cast_unsigned(),
                });
                if rows.len() == TOGETHER {
                    tell(&rows);
                    rows.clear();
                }
            }
            tell(&rows);
            file.known = true;
            Ok(())
        })
    }

    /// Adds differences; the sums that come of them. `all` is everything that is known, for a new file in the
    /// place of one that was lost.
    pub(super) fn add(
        &mut self,
        rows: &[TallyRow],
        all: impl Fn() -> Vec<TallyRow>,
    ) -> Result<Vec<TallyRow>, Error> {
        self.using(|file| {
            let fresh = file.opened()? && std::mem::replace(&mut file.known, true);
            let Some(open) = &mut file.open else { return Ok(Vec::new()) };
            let transaction = open.connection.transaction()?;
            let mut totals = Vec::with_capacity(rows.len());
            if fresh {
                // The differences are in it.
                let mut raise = transaction.prepare(RAISE)?;
                for row in all() {
                    raise.execute(params![
                        blob(row.id),
                        row.slot.cast_signed(),
                        row.used,
                        row.ends.cast_signed()
                    ])?;
                }
            } else {
                let mut add = transaction.prepare(ADD)?;
                for row in rows {
                    let values =
                        params![blob(row.id), row.slot.cast_signed(), row.used, row.ends.cast_signed()];
                    totals.push(TallyRow { used: add.query_row(values, |found| found.get(0))?, ..*row });
                }
            }
            transaction.commit()?;
            Ok(totals)
        })
    }

    /// Once so many rows were written, looks through a part of the file, or through more of it if they were many:
    /// what counts no longer goes, and of more than there is room for, the quotas of which least was used. How many
    /// rows went that still count.
    pub(super) fn prune(&mut self, written: usize) -> Result<usize, Error> {
        self.using(|file| {
            let Some(open) = &file.open else { return Ok(0) };
            let (lately, mut forgotten) = ((now() - LONG, file.began), 0);
            for _ in 0..(1 + written / WRITTEN_A_PART).min(PARTS) {
                forgotten += open.prune(file.part, lately)?;
                file.part = file.part.wrapping_add(1);
            }
            Ok(forgotten)
        })
    }

    /// Closes the file after any failure, and puts a damaged one aside; the next use opens it anew.
    fn using<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let result = act(self);
        if let Err(error) = &result {
            self.open = None;
            let code = error.sqlite_error_code();
            if matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) {
                self.put_aside();
            }
        }
        result
    }

    fn put_aside(&mut self) {
        // What it knew is lost; what is known here goes into the next one.
        self.known = true;
        let beside = |suffix: &str| {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let aside = beside(&format!(".damaged-{}", now()));
        match fs::rename(&self.path, &aside) {
            Ok(()) => {
                log::error!(file:% = aside.display(); "the file of quotas is damaged, and was put aside")
            }
            Err(error) => log::error!("the file of quotas is damaged, and cannot be put aside: {error}"),
        }
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(beside(suffix));
        }
    }

    /// Opens the file, unless it is open and still there; whether it has nothing in it.
    fn opened(&mut self) -> Result<bool, Error> {
        if self.open.as_ref().is_some_and(|open| inode(&self.path) == Some(open.inode)) {
            return Ok(false);
        }
        self.open = None;
        let connection = connect(&self.path)?;
        let empty = connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM used)", [], |row| row.get(0))?;
        let inode = inode(&self.path).unwrap_or_default();
        self.open = Some(Open { connection, inode });
        Ok(empty)
    }
}

impl Open {
    /// Looks through the part of the digests that begin with this byte; what ended `lately`, from and to, is kept if
    /// there is room. How many rows went that still count.
    fn prune(&self, part: u8, lately: (i64, i64)) -> Result<usize, Error> {
        let first = u64::from(part) << 56;
        let (from, to) = (blob([first, 0]), blob([first | (u64::MAX >> 8), u64::MAX]));
        let most = MOST_IN_PART as i64;
        let fits_without = |kept: (i64, i64)| -> Result<bool, Error> {
            self.connection.execute(DROP, params![from, to, now(), kept.0, kept.1])?;
            let rows: i64 = self.connection.query_row(COUNT, params![from, to], |row| row.get(0))?;
            Ok(rows <= most)
        };
        if fits_without(lately)? || fits_without(NEVER)? {
            return Ok(0);
        }
        self.connection.execute(THIN, params![from, to, most])
    }
}

/// Opens the file at this path, which is made if there is none.
///
/// # Errors
/// It cannot be made or opened, or a later version of this program made it.
pub fn connect(path: &Path) -> Result<Connection, Error> {
    prepare(path).map_err(|error| cannot_open(path, &error))?;
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > VERSION {
        let problem = io::Error::other("a later version of this program made it");
        return Err(cannot_open(path, &problem));
    }
    if version < VERSION {
        connection.execute_batch(LAYOUT)?;
    }
    Ok(connection)
}

/// Makes the file, which is nobody else's business, and its folder.
fn prepare(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // To close what is opened here would give up the locks that SQLite holds on it for this process (fcntl_locking(2)).
    if !path.exists() {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    }
    if fs::metadata(path)?.is_file() { Ok(()) } else { Err(io::Error::other("it is no regular file")) }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn cannot_open(path: &Path, error: &io::Error) -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
    Error::SqliteFailure(code, Some(format!("{}: {error}", path.display())))
}

fn blob(id: [u64; 2]) -> [u8; 16] {
    ((u128::from(id[0]) << 64) | u128::from(id[1])).to_be_bytes()
}

/// Of a blob of another length, digests that nobody has.
fn id_of(blob: &[u8]) -> [u64; 2] {
    let half = |at: usize| {
        let bytes = blob.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_be_bytes(bytes.unwrap_or_default())
    };
    [half(0), half(8)]
}

/// Unix seconds.
fn now() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
