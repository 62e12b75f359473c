//! Decoders that stop at a limit: a few bytes can stand for gigabytes.
//!
//! Hardened against untrusted senders: what a decoder holds is bounded by the window of its coding
//! (gzip 32 KiB, zstd 8 MiB by RFC 9659, Brotli 16 MiB by RFC 7932), what it gives out by [`Limits`].

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// Largest window of a zstd frame: 8 MiB, the most that RFC 9659 lets a sender use.
const ZSTD_WINDOW_BITS: u32 = 23;
/// Bodies up to this size may be as repetitive as they like.
const ALWAYS_FINE: u64 = 1 << 20;
/// Members of one gzip body; each costs a decoder of its own.
const MAX_MEMBERS: u32 = 4096;
/// Decoded at a time.
const STEP: usize = 32 * 1024;

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

/// Why a body cannot be decoded; the sender's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not what its coding says, or ends too early.
    Malformed,
    /// More comes out of it than the limits allow.
    TooLarge,
}

/// A body being decoded.
pub struct Decoder {
    stages: Vec<Stage>,
    limits: Limits,
    taken: u64,
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
    Br(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(ZstdDecoder<'static>),
}

impl Decoder {
    /// A decoder of a body to which these codings were applied in this order.
    ///
    /// # Errors
    /// No memory.
    pub fn new(codings: &[Coding], limits: Limits) -> std::io::Result<Self> {
        let stages = codings.iter().rev().map(|coding| Stage::new(*coding)).collect::<Result<_, _>>()?;
        Ok(Self { stages, limits, taken: 0 })
    }

    /// Decodes a piece; nothing may come out of it yet.
    ///
    /// # Errors
    /// See [`Fault`]; the decoder is of no use then.
    pub fn piece(&mut self, piece: &[u8]) -> Result<Bytes, Fault> {
        self.taken += piece.len() as u64;
        let by_ratio = self.taken.saturating_mul(u64::from(self.limits.ratio)).max(ALWAYS_FINE);
        let limit = self.limits.size.min(by_ratio);
        let mut bytes = Bytes::copy_from_slice(piece);
        for stage in &mut self.stages {
            bytes = stage.piece(&bytes, limit)?.into();
        }
        Ok(bytes)
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
                let alloc = StandardAlloc::default;
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

fn brotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    piece: &[u8],
    room: &mut [u8],
) -> Result<(Step, bool), Fault> {
    let (mut left, mut space) = (piece.len(), room.len());
    let (mut taken, mut given, mut total) = (0, 0, 0);
    let result =
        BrotliDecompressStream(&mut left, &mut taken, piece, &mut space, &mut given, room, &mut total, state);
    match result {
        BrotliResult::ResultFailure => Err(Fault::Malformed),
        result => Ok((Step { taken, given }, matches!(result, BrotliResult::ResultSuccess))),
    }
}
