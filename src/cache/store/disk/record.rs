//! An entry as a file: a mark, a checksum of the rest (SHA-256), a head in JSON, what is packed, the body.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tollhouse_filters::caching::Standing;

use crate::cache::Facts;
use crate::cache::store::body::Large;
use crate::cache::store::entry::{BLOCK, Entry, Marked};

/// What a file of this form begins with.
const MARK: [u8; 8] = *b"tollcac1";
const DIGEST: usize = 32;
/// Where the part begins that the checksum is of: the length of the head, and the head.
const CHECKED: usize = MARK.len() + DIGEST;

#[derive(Serialize, Deserialize)]
struct Head {
    /// Where key, variant, tags and lines end in what is packed, and where that ends.
    ends: [u32; 5],
    status: u16,
    purged: bool,
    #[serde(default)]
    in_doubt: bool,
    /// Whether the body lies behind what is packed.
    large: bool,
    facts: Facts,
}

/// Writes an entry.
pub(super) fn write(entry: &Entry, out: &mut impl Write) -> io::Result<()> {
    let head = Bytes::from(head(entry)?);
    let mut body = Vec::new();
    if entry.large.is_some() {
        let mut pieces = entry.body();
        body.extend(pieces.by_ref());
        if pieces.left() > 0 {
            return Err(io::Error::other("a stored body cannot be read"));
        }
    }
    let parts = || [&head, &entry.packed].into_iter().chain(&body);
    let mut digest = Sha256::new();
    parts().for_each(|part| digest.update(part));
    out.write_all(&MARK)?;
    out.write_all(&digest.finalize())?;
    parts().try_for_each(|part| out.write_all(part))
}

/// The entry of a file; `None` if it is not whole, or not such a file.
pub(super) fn read(file: Vec<u8>) -> Option<Entry> {
    let file = Bytes::from(file);
    let checked = file.get(CHECKED..)?;
    if file[..MARK.len()] != MARK || Sha256::digest(checked)[..] != file[MARK.len()..CHECKED] {
        return None;
    }
    let (length, rest) = checked.split_first_chunk()?;
    let (head, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let [key_end, variant_end, tags_end, lines_end, end] = head.ends;
    let (packed, body) = rest.split_at_checked(end as usize)?;
    let large = head.large.then(|| {
        let body = file.slice_ref(body);
        let starts = (0..body.len()).step_by(BLOCK);
        let blocks = starts.map(|start| body.slice(start..body.len().min(start + BLOCK))).collect();
        Arc::new(Large::of(blocks))
    });
    let entry = Entry {
        // Copied, so that it does not hold on to the file's other parts.
        packed: Bytes::copy_from_slice(packed),
        large,
        facts: head.facts,
        key_end,
        variant_end,
        tags_end,
        lines_end,
        status: head.status,
        marked: Marked::default(),
    };
    if head.purged {
        entry.mark(if head.in_doubt { Standing::InDoubt } else { Standing::Stale });
    }
    entry.is_sound().then_some(entry)
}

/// Bytes of a file, at most.
pub(super) fn size(entry: &Entry) -> u64 {
    const HEAD: u64 = 1024;
    HEAD + entry.packed.len() as u64 + entry.large.as_ref().map_or(0, |large| large.length())
}

fn head(entry: &Entry) -> io::Result<Vec<u8>> {
    let end = u32::try_from(entry.packed.len()).map_err(io::Error::other)?;
    let head = Head {
        ends: [entry.key_end, entry.variant_end, entry.tags_end, entry.lines_end, end],
        status: entry.status,
        purged: entry.is_purged(),
        in_doubt: entry.standing() == Standing::InDoubt,
        large: entry.large.is_some(),
        facts: entry.facts,
    };
    let json = serde_json::to_vec(&head)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes()[..], &json].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these ends, and a checksum that is right.
    fn file(ends: [u32; 5], large: bool, rest: &[u8]) -> Vec<u8> {
        let head = Head { ends, status: 200, purged: false, in_doubt: false, large, facts: Facts::default() };
        let json = serde_json::to_vec(&head).unwrap();
        let checked = [&u32::try_from(json.len()).unwrap().to_be_bytes()[..], &json, rest].concat();
        [&MARK[..], &Sha256::digest(&checked), &checked].concat()
    }

    #[test]
    fn a_file_with_ends_in_order_is_an_entry() {
        let entry = Arc::new(read(file([1, 2, 4, 6, 9], false, b"kv\x01tll123")).expect("a whole file"));
        assert_eq!((entry.key(), entry.variant(), entry.lines()), (&b"k"[..], &b"v"[..], &b"ll"[..]));
        assert_eq!(entry.tags().collect::<Vec<_>>(), ["t"]);
        assert_eq!(entry.body().flatten().collect::<Vec<u8>>(), b"123");
    }

    #[test]
    fn a_file_that_is_nonsense_with_a_right_checksum_is_none_or_harmless() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut sound = 0;
        for _ in 0..20_000 {
            let mut ends = [0; 5].map(|_: u32| random.u32(0..12));
            if random.bool() {
                ends.sort_unstable();
            }
            let rest: Vec<u8> = (0..random.usize(0..14)).map(|_| random.u8(0..4)).collect();
            let Some(entry) = read(file(ends, random.bool(), &rest)).map(Arc::new) else { continue };
            sound += 1;
            let body: usize = entry.body().map(|piece| piece.len()).sum();
            let tags: usize = entry.tags().map(|tag| tag.len() + 1).sum();
            assert!(
                body + tags + entry.key().len() + entry.variant().len() + entry.lines().len() <= rest.len()
            );
        }
        assert!(sound > 100, "{sound}");
    }

    #[test]
    fn a_file_of_another_form_is_none() {
        for bytes in [&b""[..], b"tollcac1", &[0; 40], &[0; 100]] {
            assert!(read(bytes.to_vec()).is_none());
        }
        assert!(read(file([0, 0, 0, 0, u32::MAX], false, b"")).is_none());
    }
}
