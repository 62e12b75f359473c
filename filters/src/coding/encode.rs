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

/// Window of zstd and Brotli, 256 KiB: it bounds what an encoder holds, and what its reader must.
const WINDOW_BITS: u32 = 18;

/// Entries of zstd's tables.
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

/// A body being encoded.
pub struct Encoder(Kind);

enum Kind {
    Zstd(Box<ZstdEncoder<'static, Vec<u8>>>),
    Br(Box<CompressorWriter<Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoder {
    /// An encoder of this level, from 1 to 9; of Brotli to 6, above which it holds 10 MiB and more.
    ///
    /// # Errors
    /// The library refuses its parameters, or memory.
    pub fn new(algorithm: Algorithm, level: u8) -> io::Result<Self> {
        Ok(Self(match algorithm {
            Algorithm::Zstd => {
                let mut encoder = ZstdEncoder::new(Vec::new(), i32::from(level))?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW_BITS))?;
                // Else tables of high levels alone take 8 MiB.
                encoder.set_parameter(CParameter::HashLog(TABLE_BITS))?;
                encoder.set_parameter(CParameter::ChainLog(TABLE_BITS))?;
                Kind::Zstd(Box::new(encoder))
            }
            Algorithm::Br => {
                Kind::Br(Box::new(CompressorWriter::new(Vec::new(), 4096, u32::from(level), WINDOW_BITS)))
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
