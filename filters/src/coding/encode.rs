//! Encoders that give out, piece by piece, what their reader can decode at once.

use std::io::{self, Write};

use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zstd::stream::raw::CParameter;
use zstd::stream::write::Encoder as ZstdEncoder;

/// The largest window of zstd and Brotli, 256 KiB: it bounds what an encoder holds, and what its reader must.
const WINDOW_BITS: u32 = 18;

/// The smallest window that both know, 1 KiB.
const MIN_WINDOW_BITS: u32 = 10;

/// The smallest window of Brotli above level 4: with less it takes tables of 30 MiB.
const BR_WIDE_BITS: u32 = 17;

/// Entries of zstd's tables, at most.
const TABLE_BITS: u32 = 17;

/// A content coding that answers can be encoded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Zstandard (RFC 8878).
    Zstd,
    /// Brotli (RFC 7932).
    Br,
    /// DEFLATE in the gzip format (RFC 1952).
    Gzip,
}

impl Algorithm {
    /// As written in `Content-Encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }

    /// The coding of this name, without regard to case; `x-gzip` is `gzip` (RFC 9110 s8.4.1.3).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [("zstd", Self::Zstd), ("br", Self::Br), ("gzip", Self::Gzip), ("x-gzip", Self::Gzip)];
        all.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, algorithm)| algorithm)
    }
}

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// The coding.
    pub algorithm: Algorithm,
    level: u8,
    window_bits: u32,
}

impl Effort {
    /// This level, from 1 to 9; of Brotli to 6, above which it holds 10 MiB and more. A body of known length gets
    /// no larger window than that.
    #[must_use]
    pub fn new(algorithm: Algorithm, level: u8, length: Option<u64>) -> Self {
        let largest = 1 << WINDOW_BITS;
        let bits = length.unwrap_or(largest).min(largest).next_power_of_two().trailing_zeros();
        let wide = algorithm == Algorithm::Br && level > 4;
        let window_bits = bits.max(if wide { BR_WIDE_BITS } else { MIN_WINDOW_BITS });
        Self { algorithm, level, window_bits }
    }

    /// About how many bytes its encoder holds, measured and rounded up.
    #[must_use]
    pub fn memory(self) -> u64 {
        let window = 1_u64 << (self.window_bits - 10);
        let kib = match (self.algorithm, self.level) {
            (Algorithm::Gzip, _) => 400,
            (Algorithm::Zstd, level) => {
                // Entries of four bytes; the fastest levels have one table.
                let tables = if level <= 2 { 4 } else { 8 } << (self.table_bits() - 10);
                tables + 2 * window + 100
            }
            (Algorithm::Br, 0..=1) => 32 + (9 * window).min(400),
            (Algorithm::Br, 2..=3) => 350 + (9 * window).min(800),
            (Algorithm::Br, 4) => 570 + (9 * window).min(1450),
            (Algorithm::Br, 5) => 2600,
            (Algorithm::Br, _) => 3600,
        };
        kib << 10
    }

    fn table_bits(self) -> u32 {
        TABLE_BITS.min(self.window_bits + 1)
    }
}

/// A body being encoded.
pub struct Encoder(Kind);

enum Kind {
    Zstd(Box<ZstdEncoder<'static, Vec<u8>>>),
    Br(Box<CompressorWriter<Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoder {
    /// An encoder of this level for a body of unknown length; see [`Effort::new`].
    ///
    /// # Errors
    /// The library refuses its parameters, or memory.
    pub fn new(algorithm: Algorithm, level: u8) -> io::Result<Self> {
        Self::of(Effort::new(algorithm, level, None))
    }

    /// An encoder of this effort.
    ///
    /// # Errors
    /// The library refuses its parameters, or memory.
    pub fn of(effort: Effort) -> io::Result<Self> {
        let Effort { algorithm, level, window_bits } = effort;
        Ok(Self(match algorithm {
            Algorithm::Zstd => {
                let mut encoder = ZstdEncoder::new(Vec::new(), i32::from(level))?;
                encoder.set_parameter(CParameter::WindowLog(window_bits))?;
                // Else tables of high levels alone take 8 MiB.
                encoder.set_parameter(CParameter::HashLog(effort.table_bits()))?;
                encoder.set_parameter(CParameter::ChainLog(effort.table_bits()))?;
                Kind::Zstd(Box::new(encoder))
            }
            Algorithm::Br => {
                Kind::Br(Box::new(CompressorWriter::new(Vec::new(), 4096, u32::from(level), window_bits)))
            }
            Algorithm::Gzip => {
                Kind::Gzip(Box::new(GzEncoder::new(Vec::new(), Compression::new(u32::from(level)))))
            }
        }))
    }

    /// Encodes a piece; what is given out lets the reader decode all pieces so far.
    ///
    /// # Errors
    /// The library failed.
    pub fn piece(&mut self, piece: &[u8]) -> io::Result<Bytes> {
        let writer = self.writer();
        writer.write_all(piece)?;
        writer.flush()?;
        Ok(std::mem::take(self.out()).into())
    }

    /// Encodes the last piece and ends the body.
    ///
    /// # Errors
    /// The library failed.
    pub fn finish(mut self, piece: &[u8]) -> io::Result<Bytes> {
        self.writer().write_all(piece)?;
        let out = match self.0 {
            Kind::Zstd(encoder) => encoder.finish()?,
            Kind::Br(encoder) => encoder.into_inner(),
            Kind::Gzip(encoder) => encoder.finish()?,
        };
        Ok(out.into())
    }

    fn writer(&mut self) -> &mut dyn Write {
        match &mut self.0 {
            Kind::Zstd(encoder) => &mut **encoder,
            Kind::Br(encoder) => &mut **encoder,
            Kind::Gzip(encoder) => &mut **encoder,
        }
    }

    /// What was encoded and not yet given out.
    fn out(&mut self) -> &mut Vec<u8> {
        match &mut self.0 {
            Kind::Zstd(encoder) => encoder.get_mut(),
            Kind::Br(encoder) => encoder.get_mut(),
            Kind::Gzip(encoder) => encoder.get_mut(),
        }
    }
}
