//! Where the kernel can send large bodies from without copying them: a file of memory (memfd_create(2),
//! sendfile(2)).
//!
//! The file only grows, and what nobody needs any more is given back as a hole in it: no place is ever used
//! twice, so what is on its way to somebody stays what it was.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::process::{Resource, getrlimit};
use tokio::runtime::Handle;

/// A hole frees whole pages; those of every system fit in here.
const STEP: u64 = 64 * 1024;

/// What is copied or given back at once on a thread that serves requests; more is left to another.
pub(super) const MOST_AT_ONCE: u64 = 1 << 20;

/// The file of this process; none where the system gives none.
static ARENA: LazyLock<io::Result<Arena>> = LazyLock::new(Arena::new);

struct Arena {
    file: File,
    end: AtomicU64,
}

impl Arena {
    fn new() -> io::Result<Self> {
        // Writing past such a limit ends the process.
        if getrlimit(Resource::Fsize).current.is_some() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // A hole in a huge page is written over in place, and with it what is still on its way to somebody.
        if has_huge_pages(Path::new("/sys/kernel/mm/transparent_hugepage")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let file = memfd_create("tollhouse-cache", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: file.into(), end: AtomicU64::new(0) })
    }
}

/// Whether files of memory may have huge pages without asking for them, of any size.
fn has_huge_pages(folder: &Path) -> bool {
    let sizes = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let chosen = |path: PathBuf| fs::read_to_string(path.join("shmem_enabled")).unwrap_or_default();
    sizes
        .chain([folder.to_owned()])
        .map(chosen)
        .any(|chosen| ["[always]", "[within_size]", "[force]"].iter().any(|choice| chosen.contains(choice)))
}

/// Bytes in the file, until this is dropped.
pub(super) struct Lodged {
    arena: &'static Arena,
    at: u64,
    length: u64,
}

impl Lodged {
    /// Copies these bytes, one after the other, into the file.
    ///
    /// # Errors
    /// When the system gives no such file, or no memory for it.
    pub(super) fn new(pieces: &[Bytes]) -> io::Result<Self> {
        let arena = ARENA.as_ref().map_err(|error| io::Error::from(error.kind()))?;
        let length = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let at = arena.end.fetch_add(length.next_multiple_of(STEP), Relaxed);
        let lodged = Self { arena, at, length };
        let mut to = at;
        for piece in pieces {
            arena.file.write_all_at(piece, to)?;
            to += piece.len() as u64;
        }
        Ok(lodged)
    }

    /// Where in the file they begin.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// A copy of so many of the bytes, which are there.
    ///
    /// # Errors
    /// When the system cannot bring them back from where it swapped them to.
    pub(super) fn read(&self, from: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.arena.file.read_exact_at(&mut bytes, self.at + from)?;
        Ok(bytes.into())
    }
}

/// The file; there is one where somebody has bytes in it.
pub(super) fn file() -> BorrowedFd<'static> {
    ARENA.as_ref().expect("bytes lie in the file").file.as_fd()
}

impl Drop for Lodged {
    fn drop(&mut self) {
        let (arena, at, length) = (self.arena, self.at, self.length.next_multiple_of(STEP));
        let punch = move || {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let given = fallocate(&arena.file, hole, at, length);
            debug_assert!(given.is_ok(), "a file of memory can have holes");
        };
        match Handle::try_current() {
            _ if length == 0 => {}
            // Freeing many pages takes a while.
            Ok(runtime) if length > MOST_AT_ONCE => drop(runtime.spawn_blocking(punch)),
            _ => punch(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_nobody_needs_takes_no_memory() {
        let blocks = || ARENA.as_ref().expect("a file").file.metadata().expect("known").blocks();
        let piece = Bytes::from(vec![7; 3 << 20]);
        let before = blocks();
        let lodged = Lodged::new(&[piece.clone(), piece]).expect("room");
        assert!(blocks() >= before + (6 << 20) / 512);
        assert_eq!(lodged.read((3 << 20) - 1, 2).expect("there"), [7, 7].as_slice());
        drop(lodged);
        assert!(blocks() < before + (6 << 20) / 512);
    }

    #[test]
    fn huge_pages_are_noticed_whatever_their_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let size = folder.path().join("hugepages-64kB");
        fs::create_dir(&size).expect("made");
        let mut found = Vec::new();
        for (all, of_size) in [
            ("always within_size advise [never] deny force", "always inherit within_size advise [never]"),
            ("always within_size [advise] never deny force", "always [inherit] within_size advise never"),
            ("always [within_size] advise never deny force", "always [inherit] within_size advise never"),
            ("always within_size advise [never] deny force", "[always] inherit within_size advise never"),
        ] {
            fs::write(folder.path().join("shmem_enabled"), all).expect("written");
            fs::write(size.join("shmem_enabled"), of_size).expect("written");
            found.push(has_huge_pages(folder.path()));
        }
        assert_eq!(found, [false, false, true, true]);
        assert!(!has_huge_pages(&folder.path().join("missing")));
    }
}
