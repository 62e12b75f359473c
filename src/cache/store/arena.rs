//! Where the kernel can send large bodies from without copying them: a file of memory (memfd_create(2),
//! sendfile(2)).
//!
//! The file only grows, and what nobody needs any more is given back as a hole in it: no place is ever used
//! twice, so what is on its way to somebody stays what it was.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

/// A hole frees whole pages; those of every system fit in here.
const STEP: u64 = 64 * 1024;

/// The file of this process; none where the system gives none.
static ARENA: LazyLock<io::Result<Arena>> = LazyLock::new(Arena::new);

struct Arena {
    file: File,
    end: AtomicU64,
}

impl Arena {
    fn new() -> io::Result<Self> {
        let file = memfd_create("tollhouse-cache", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: file.into(), end: AtomicU64::new(0) })
    }
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
    pub(super) fn read(&self, from: u64, length: usize) -> Bytes {
        let mut bytes = vec![0; length];
        let read = self.arena.file.read_exact_at(&mut bytes, self.at + from);
        // As with all other memory, there is no going on without it.
        read.expect("memory can be read");
        bytes.into()
    }
}

impl AsFd for Lodged {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arena.file.as_fd()
    }
}

impl Drop for Lodged {
    fn drop(&mut self) {
        if self.length > 0 {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let given = fallocate(&self.arena.file, hole, self.at, self.length.next_multiple_of(STEP));
            debug_assert!(given.is_ok(), "a file of memory can have holes");
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
        assert_eq!(lodged.read((3 << 20) - 1, 2), [7, 7].as_slice());
        drop(lodged);
        assert!(blocks() < before + (6 << 20) / 512);
    }
}
