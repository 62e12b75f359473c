//! An HTTP/2 client that says exactly what it is told, frame by frame (RFC 9113 s4.1).

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::{Wire, soon};

/// Types of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// GET / of http://a/, without Huffman coding or table (RFC 7541 s6).
pub(crate) const GET: &[u8] = b"\x82\x86\x84\x01\x01a";
/// POST / of http://a/.
pub(crate) const POST: &[u8] = b"\x83\x86\x84\x01\x01a";

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) content: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or a RST_STREAM.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.content[at..at + 4].try_into().expect("four bytes"))
    }
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

/// A connection after its preface.
pub(crate) struct H2Raw(pub(crate) Wire<TcpStream>);

impl H2Raw {
    /// Connects and says the preface, and these settings.
    pub(crate) async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        Self::over(Wire::connect(address).await, settings).await
    }

    /// Over this connection.
    pub(crate) async fn over(mut wire: Wire, settings: &[(u16, u32)]) -> Self {
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        wire.send(frame(kind::SETTINGS, 0, 0, &settings)).await;
        Self(wire)
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, content: &[u8]) {
        self.0.send(frame(kind, flags, stream, content)).await;
    }

    /// The next frame; none at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let head = self.0.exactly(9).await.ok()?;
        let [high, mid, low, kind, flags, stream @ ..] = *head.first_chunk::<9>()?;
        let content = self.0.exactly(u32::from_be_bytes([0, high, mid, low]) as usize).await.ok()?;
        let stream = u32::from_be_bytes(stream);
        Some(Frame { kind, flags, stream, content })
    }

    /// The next frame of this type.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            match self.next().await {
                Some(frame) if frame.kind == kind => return Some(frame),
                Some(_) => {}
                None => return None,
            }
        }
    }

    /// Sends these bytes again and again until the connection ends, while what comes is read; gives the
    /// GOAWAYs that came. `piece` is asked for what to send at the n-th time.
    pub(crate) async fn flood(self, most: u32, mut piece: impl FnMut(u32) -> Vec<u8>) -> Vec<Frame> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut reader, mut writer) = self.0.into_stream().into_split();
        let reading = tokio::spawn(async move {
            let mut bytes = Vec::new();
            let _ = reader.read_to_end(&mut bytes).await;
            bytes
        });
        let sending = async {
            for n in 0..most {
                if writer.write_all(&piece(n)).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let bytes =
            soon("the end of a flood", async { tokio::join!(sending, reading).1 }).await.expect("read");
        frames(&bytes).into_iter().filter(|frame| frame.kind == kind::GOAWAY && frame.code() != 0).collect()
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [high, mid, low, kind, flags, s1, s2, s3, s4, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *high, *mid, *low]) as usize;
        let Some((content, rest)) = rest.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([*s1, *s2, *s3, *s4]);
        frames.push(Frame { kind: *kind, flags: *flags, stream, content: content.to_vec() });
        bytes = rest;
    }
    frames
}
