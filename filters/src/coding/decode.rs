//! Decoders that stop at a limit: a few bytes can stand for gigabytes.
//!
//! Hardened against untrusted senders: what a decoder holds is bounded by the window of its coding
//! (gzip 32 KiB, zstd 8 MiB by RFC 9659, Brotli 16 MiB by RFC 7932), what all of them hold by a
//! [`Budget`], with the pieces that came out of them and wait to be sent, and what one gives out by
//! [`Limits`].

use std::sync::Arc;

use brotli_decompressor::{
    Allocator, BrotliDecompressStream, BrotliResult, BrotliState, SliceWrapper, StandardAlloc,
};
use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use super::budget::{Budget, Share};

/// Largest window of a zstd frame: 8 MiB, the most that RFC 9659 lets a sender use.
const ZSTD_WINDOW_BITS: u32 = 23;
/// Bodies up to this size may be as repetitive as they like.
const ALWAYS_FINE: u64 = 1 << 20;
/// Members of one gzip body; each costs a decoder of its own.
const MAX_MEMBERS: u32 = 4096;
/// Decoded at a time.
const STEP: usize = 32 * 1024;
/// What a decoder of gzip or zlib holds, its window included.
const INFLATE_BYTES: u64 = 48 << 10;
/// What a decoder of zstd holds beside its window.
const ZSTD_BYTES: u64 = 192 << 10;
/// What a decoder of Brotli writes to beside its window, at most: which trees are for which bytes.
const BR_MAPS_BYTES: u64 = 32 << 10;
/// A piece of a body that nobody decodes is as large, and counts for nothing.
const PLAIN_BYTES: u64 = 64 << 10;

/// A content coding that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Zstandard (RFC 8878), any number of frames.
    Zstd,
    /// Brotli (RFC 7932), without its large windows.
    Br,
    /// DEFLATE in the gzip format (RFC 1952), any number of members.
    Gzip,
    /// DEFLATE in the zlib format (RFC 1950).
    Deflate,
}

impl Coding {
    /// The coding of this name, without regard to case; `x-gzip` is `gzip` (RFC 9110 s8.4.1.3).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [
            ("gzip", Self::Gzip),
            ("br", Self::Br),
            ("zstd", Self::Zstd),
            ("deflate", Self::Deflate),
            ("x-gzip", Self::Gzip),
        ];
        all.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, coding)| coding)
    }
}

/// How much may come out of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In bytes.
    pub size: u64,
    /// For each byte that came in, once the body is over 1 MiB.
    pub ratio: u32,
}

/// Why a body cannot be decoded; the sender's fault but for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not what its coding says, or ends too early.
    Malformed,
    /// More comes out of it than the limits allow, or than there could be memory for.
    TooLarge,
    /// Others hold what there is of the budget.
    NoMemory,
}

/// A body being decoded.
pub struct Decoder {
    stages: Vec<Stage>,
    limits: Limits,
    taken: u64,
    budget: Arc<Budget>,
    /// Of what the decoder itself holds.
    share: Share,
    /// Of what came out last.
    last: Option<Arc<Share>>,
    /// Each piece that came out and is still held has a clone of it.
    pieces: Arc<()>,
}

/// What came out of a piece, a share of the budget for as long as anybody holds it.
struct Waiting {
    bytes: Bytes,
    _share: Arc<Share>,
    _piece: Arc<()>,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

struct Stage {
    kind: Kind,
    /// Bytes given out so far.
    given: u64,
    /// What came in so far is a whole body.
    whole: bool,
}

enum Kind {
    Inflate { state: Decompress, gzip: bool, members: u32 },
    Br(Box<Brotli>),
    Zstd(ZstdDecoder<'static>),
}

type Brotli = BrotliState<Counted, Counted, Counted>;

/// Counts what Brotli asks for: its tables can take megabytes after a few hundred bytes.
#[derive(Default)]
struct Counted {
    bytes: u64,
}

impl<T: Clone + Default> Allocator<T> for Counted {
    type AllocatedMemory = <StandardAlloc as Allocator<T>>::AllocatedMemory;

    fn alloc_cell(&mut self, length: usize) -> Self::AllocatedMemory {
        self.bytes += bytes_of::<T>(length);
        Allocator::<T>::alloc_cell(&mut StandardAlloc::default(), length)
    }

    fn free_cell(&mut self, cell: Self::AllocatedMemory) {
        self.bytes = self.bytes.saturating_sub(bytes_of::<T>(SliceWrapper::<T>::len(&cell)));
    }
}

fn bytes_of<T>(length: usize) -> u64 {
    (length * size_of::<T>()) as u64
}

impl Decoder {
    /// A decoder of a body to which these codings were applied in this order, within the budget of the process.
    ///
    /// # Errors
    /// No memory.
    pub fn new(codings: &[Coding], limits: Limits) -> std::io::Result<Self> {
        Self::within(&Budget::of_decoders(), codings, limits)
    }

    /// The same within this budget, of which it takes what it holds, and gives it back when it is dropped.
    ///
    /// # Errors
    /// No memory.
    pub fn within(budget: &Arc<Budget>, codings: &[Coding], limits: Limits) -> std::io::Result<Self> {
        let stages = codings.iter().rev().map(|coding| Stage::new(*coding)).collect::<Result<_, _>>()?;
        let (share, pieces) = (budget.share(), Arc::new(()));
        Ok(Self { stages, limits, taken: 0, budget: budget.clone(), share, last: None, pieces })
    }

    /// Decodes a piece; nothing may come out of it yet.
    ///
    /// # Errors
    /// See [`Fault`]; the decoder is of no use then.
    pub fn piece(&mut self, piece: &[u8]) -> Result<Bytes, Fault> {
        // Whoever asks for more has sent that, or holds it still.
        self.last = None;
        self.afford()?;
        self.taken += piece.len() as u64;
        let by_ratio = self.taken.saturating_mul(u64::from(self.limits.ratio)).max(ALWAYS_FINE);
        let limit = self.limits.size.min(by_ratio);
        let mut bytes = Bytes::copy_from_slice(piece);
        for stage in &mut self.stages {
            bytes = stage.piece(&bytes, limit)?.into();
        }
        self.afford()?;
        self.counted(bytes)
    }

    /// Takes of the budget what it holds by now.
    fn afford(&mut self) -> Result<(), Fault> {
        let held = self.held();
        if self.share.grow(held) { Ok(()) } else { Err(self.refusal(held)) }
    }

    fn held(&self) -> u64 {
        self.stages.iter().map(Stage::memory).sum()
    }

    /// Takes of the budget what came out of a piece. Several may wait in a queue, each of them as it is; of one that
    /// was copied to be sent only this knows, until there is another one.
    fn counted(&mut self, piece: Bytes) -> Result<Bytes, Fault> {
        let beyond = (piece.len() as u64).saturating_sub(PLAIN_BYTES);
        if beyond == 0 {
            return Ok(piece);
        }
        // One alone may be little. Each of those behind it would be as well, and all of them much.
        let share = if Arc::strong_count(&self.pieces) == 1 {
            let mut share = self.budget.share();
            share.grow(beyond).then_some(share)
        } else {
            self.budget.take(beyond)
        };
        let Some(share) = share.map(Arc::new) else { return Err(self.refusal(self.held() + beyond)) };
        self.last = Some(share.clone());
        Ok(Bytes::from_owner(Waiting { bytes: piece, _share: share, _piece: self.pieces.clone() }))
    }

    /// Why there is not so much.
    fn refusal(&self, bytes: u64) -> Fault {
        // Without others it would be no better.
        if self.share.could_be(bytes) { Fault::NoMemory } else { Fault::TooLarge }
    }

    /// Ends it; what it gave last may still wait to be sent, and counts until this is dropped.
    #[must_use]
    pub fn into_waiting(self) -> Option<Arc<Share>> {
        self.last
    }

    /// The body ends here; one without a single byte is fine.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if there should be more of it.
    pub fn finish(&self) -> Result<(), Fault> {
        let whole = self.taken == 0 || self.stages.iter().all(|stage| stage.whole);
        if whole { Ok(()) } else { Err(Fault::Malformed) }
    }
}

impl Stage {
    fn new(coding: Coding) -> std::io::Result<Self> {
        let kind = match coding {
            Coding::Gzip => Kind::Inflate { state: Decompress::new_gzip(15), gzip: true, members: 1 },
            Coding::Deflate => Kind::Inflate { state: Decompress::new(true), gzip: false, members: 1 },
            Coding::Br => {
                let alloc = Counted::default;
                // Strict: without the large windows that RFC 7932 does not know, of up to 1 GiB.
                Kind::Br(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
            }
            Coding::Zstd => {
                let mut state = ZstdDecoder::new()?;
                state.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_BITS))?;
                Kind::Zstd(state)
            }
        };
        Ok(Self { kind, given: 0, whole: false })
    }

    /// About how many bytes it holds. Of a window that is no more than was given out: the rest of it was never written
    /// to.
    fn memory(&self) -> u64 {
        match &self.kind {
            Kind::Inflate { .. } => INFLATE_BYTES,
            Kind::Br(state) => {
                let window = state.alloc_u8.bytes.min(self.given + BR_MAPS_BYTES);
                bytes_of::<Brotli>(1) + state.alloc_u32.bytes + state.alloc_hc.bytes + window
            }
            Kind::Zstd(_) => ZSTD_BYTES + self.given.min(1 << ZSTD_WINDOW_BITS),
        }
    }

    /// Decodes all of a piece, unless more than `limit` bytes come out of the body.
    fn piece(&mut self, mut piece: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        let mut room = vec![0; STEP];
        loop {
            let step = self.step(piece, &mut room)?;
            piece = &piece[step.taken..];
            self.given += step.given as u64;
            if self.given > limit {
                return Err(Fault::TooLarge);
            }
            out.extend_from_slice(&room[..step.given]);
            // With room left, everything that came in has come out.
            if piece.is_empty() && step.given < STEP {
                return Ok(out);
            }
            if step.taken == 0 && step.given == 0 {
                return Err(Fault::Malformed);
            }
        }
    }

    fn step(&mut self, piece: &[u8], room: &mut [u8]) -> Result<Step, Fault> {
        if piece.is_empty() && self.whole {
            return Ok(Step { taken: 0, given: 0 });
        }
        match &mut self.kind {
            Kind::Inflate { state, gzip, members } => {
                if self.whole {
                    again(state, *gzip, members)?;
                    self.whole = false;
                }
                let (taken, given) = (state.total_in(), state.total_out());
                let status =
                    state.decompress(piece, room, FlushDecompress::None).map_err(|_| Fault::Malformed)?;
                self.whole = status == Status::StreamEnd;
                Ok(Step::between((taken, given), (state.total_in(), state.total_out())))
            }
            Kind::Br(state) if !self.whole => {
                let (step, whole) = brotli(state, piece, room)?;
                self.whole = whole;
                Ok(step)
            }
            // RFC 7932 knows no second stream.
            Kind::Br(_) => Err(Fault::Malformed),
            Kind::Zstd(state) => {
                let (mut input, mut output) = (InBuffer::around(piece), OutBuffer::around(room));
                let expected = state.run(&mut input, &mut output).map_err(|_| Fault::Malformed)?;
                self.whole = expected == 0;
                Ok(Step { taken: input.pos(), given: output.pos() })
            }
        }
    }
}

/// One call of a library.
struct Step {
    taken: usize,
    given: usize,
}

impl Step {
    fn between(before: (u64, u64), after: (u64, u64)) -> Self {
        let length = |before, after| usize::try_from(after - before).unwrap_or(usize::MAX);
        Self { taken: length(before.0, after.0), given: length(before.1, after.1) }
    }
}

/// Starts over for the next member of a gzip body; zlib has no such thing.
fn again(state: &mut Decompress, gzip: bool, members: &mut u32) -> Result<(), Fault> {
    *members += 1;
    if !gzip || *members > MAX_MEMBERS {
        return Err(Fault::Malformed);
    }
    *state = Decompress::new_gzip(15);
    Ok(())
}

fn brotli(state: &mut Brotli, piece: &[u8], room: &mut [u8]) -> Result<(Step, bool), Fault> {
    let (mut left, mut space) = (piece.len(), room.len());
    let (mut taken, mut given, mut total) = (0, 0, 0);
    let result =
        BrotliDecompressStream(&mut left, &mut taken, piece, &mut space, &mut given, room, &mut total, state);
    match result {
        BrotliResult::ResultFailure => Err(Fault::Malformed),
        result => Ok((Step { taken, given }, matches!(result, BrotliResult::ResultSuccess))),
    }
}
