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

/// The file, which is made when there is something to write.
pub struct File {
    path: PathBuf,
    open: Option<Open>,
    /// Whether it was read once: one that is made after that knows less than we do.
    known: bool,
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
        Self { path, open: None, known: false }
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

    /// What it knows that still counts; nothing if there is no file.
    pub(super) fn load(&mut self) -> Result<Vec<TallyRow>, Error> {
        if !self.path.exists() {
            self.known = true;
            return Ok(Vec::new());
        }
        self.using(|file| {
            file.opened()?;
            let Some(open) = &file.open else { return Ok(Vec::new()) };
            let mut query =
                open.connection.prepare("SELECT id, slot, used, ends FROM used WHERE ends > ?1")?;
            let rows = query.query_map([now()], |row| {
                let (id, slot, ends): (Vec<u8>, i64, i64) = (row.get(0)?, row.get(1)?, row.get(3)?);
                let row = TallyRow {
                    id: id_of(&id),
                    slot: slot.cast_unsigned(),
                    used: row.get(2)?,
                    ends: ends.cast_unsigned(),
                };
                Ok(row)
            })?;
            let rows = rows.collect::<Result<_, _>>()?;
            file.known = true;
            Ok(rows)
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

    /// Drops what counts no longer.
    pub(super) fn prune(&mut self) -> Result<(), Error> {
        self.using(|file| {
            let Some(open) = &file.open else { return Ok(()) };
            open.connection.execute("DELETE FROM used WHERE ends <= ?1", [now()])?;
            Ok(())
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
