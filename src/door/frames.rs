//! Follows the frames of an HTTP/2 connection in both directions: counts those that make work and carry
//! nothing (RFC 9113 s10.5), so that a client that floods is told to go, and knows which answers are not sent to
//! their end.

mod streams;

use std::time::{Duration, Instant};

use super::Rule;
use super::stream::PREFACE;
use streams::Streams;

/// What a frame has room for, as nobody is told of more (RFC 9113 s6.5.2).
const ROOM: u32 = 16_384;

/// What a frame of data pays for, either way: updates of two windows, and a PING to measure the line by,
/// as gRPC clients send. Envoy grants ten updates.
const PER_DATA: u32 = 4;
/// What a request or an answer pays for, such as its place among others (PRIORITY).
const PER_MESSAGE: u32 = 10;
/// What a frame costs that no client has a reason for: data without data, or a window that is opened by
/// less than the smallest message of gRPC, whose clients ask for one after the other.
const POINTLESS: u32 = 10;
const SMALLEST_UPDATE: u32 = 5;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const NO_ERROR: u32 = 0;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Both directions of a connection, from the client's preface on.
#[derive(Debug)]
pub(super) struct Frames {
    from_client: Cut,
    to_client: Cut,
    /// Streams that either side resets, beyond those that were answered.
    resets: Budget,
    /// Frames that carry nothing and only control the connection.
    controls: Budget,
    continuations: u32,
    most_continuations: u32,
    streams: Streams,
    /// The stream whose head ends with the frame that comes.
    opening: Option<u32>,
    /// Bytes of DATA that went out.
    sent: u64,
    /// The client closed its side.
    ended: bool,
    /// A GOAWAY that says more than that the gateway is about to leave went out.
    dismissed: bool,
}

impl Frames {
    /// A connection of which nothing was followed yet; heads have at most this size, as SETTINGS say it.
    pub(super) fn new(begun: Instant, header_list: u32) -> Self {
        Self {
            from_client: Cut { left: PREFACE.len(), ..Cut::default() },
            to_client: Cut::default(),
            // Envoy looks from 500 premature resets on at their share; nghttp2 lets 33 a second pass. Who
            // cancels much and reads as much stays.
            resets: Budget { rule: Rule::ResetFlood, most: 500, per_second: 33, left: 500, filled: begun },
            // Envoy and nghttp2 hold up to 1,000 answers to such frames.
            controls: Budget {
                rule: Rule::ControlFlood,
                most: 1000,
                per_second: 100,
                left: 1000,
                filled: begun,
            },
            continuations: 0,
            most_continuations: most_continuations(header_list),
            streams: Streams::default(),
            opening: None,
            sent: 0,
            ended: false,
            dismissed: false,
        }
    }

    /// Follows what the client sent; nothing is the end.
    ///
    /// # Errors
    /// What it sent too much of.
    pub(super) fn client_sent(&mut self, mut bytes: &[u8]) -> Result<(), Rule> {
        self.ended |= bytes.is_empty();
        while let Some(frame) = self.from_client.next(&mut bytes) {
            // The frame before this one is whole.
            if let Some(id) = self.opening.take() {
                self.streams.open(id);
            }
            if matches!(frame.kind, HEADERS | CONTINUATION) && frame.flags & END_HEADERS != 0 {
                self.opening = Some(frame.stream);
            }
            match frame.kind {
                DATA if frame.content() > 0 => self.controls.earn(PER_DATA),
                DATA if frame.flags & END_STREAM != 0 => {}
                DATA => self.controls.spend(POINTLESS)?,
                HEADERS => {
                    self.continuations = 0;
                    self.controls.earn(PER_MESSAGE);
                }
                RST_STREAM => {
                    self.streams.close(frame.stream);
                    self.resets.spend(1)?;
                }
                // One may hold thousands of settings.
                SETTINGS => self.controls.spend(1 + frame.length / 64)?,
                WINDOW_UPDATE if frame.word(0) < SMALLEST_UPDATE => self.controls.spend(POINTLESS)?,
                CONTINUATION => {
                    self.continuations += 1;
                    if self.continuations > self.most_continuations {
                        return Err(Rule::ContinuationFlood);
                    }
                }
                // PING, PRIORITY, WINDOW_UPDATE, GOAWAY and what is to be ignored (RFC 9113 s5.5).
                _ => self.controls.spend(1)?,
            }
        }
        // The next frame may have begun already: the library waits for no more of it before it answers.
        if self.from_client.left == 0
            && let Some(id) = self.opening.take()
        {
            self.streams.open(id);
        }
        Ok(())
    }

    /// Follows what is sent to the client; errors of the connection are told by its GOAWAY.
    ///
    /// # Errors
    /// What the client made the gateway send too much of, or why the connection ends.
    pub(super) fn client_gets(&mut self, mut bytes: &[u8]) -> Result<(), Rule> {
        let mut verdict = Ok(());
        while let Some(frame) = self.to_client.next(&mut bytes) {
            if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
                self.resets.earn(1);
                self.streams.close(frame.stream);
            }
            let judged = match frame.kind {
                DATA if frame.length > 0 => {
                    self.controls.earn(PER_DATA);
                    self.sent += u64::from(frame.length);
                    Ok(())
                }
                RST_STREAM => {
                    self.streams.close(frame.stream);
                    self.resets.spend(1)
                }
                GOAWAY => {
                    self.streams.end_after(frame.word(0));
                    self.dismissed |= frame.word(4) != NO_ERROR;
                    if frame.word(4) == NO_ERROR { Ok(()) } else { Err(dismissal(&frame)) }
                }
                _ => Ok(()),
            };
            verdict = verdict.and(judged);
        }
        verdict
    }

    /// The last frame the client may read, if one can be sent: not within another frame, nor after one like it.
    pub(super) fn goaway(&self, rule: Rule) -> Option<Vec<u8>> {
        let can = self.to_client.is_between() && !self.dismissed;
        can.then(|| goaway(ENHANCE_YOUR_CALM, self.streams.newest(), rule))
    }

    /// Whether something that the client asked for is not sent to its end.
    pub(super) fn owes(&self) -> bool {
        self.streams.are_open() || !self.to_client.is_between()
    }

    /// How much content of answers was sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether the client closed its side.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether the client was told to go.
    pub(super) fn dismissed(&self) -> bool {
        self.dismissed
    }
}

/// CONTINUATION frames of one field section; most clients need none. As many as the library allows, which lets so
/// many go before the last, for clients that do not fill their frames.
fn most_continuations(header_list: u32) -> u32 {
    let full = (header_list / ROOM).max(1);
    (full + full / 4).max(5) + 1
}

/// Which rule the gateway's own reading of HTTP/2 ended the connection by. Its limits are in the debug data.
fn dismissal(frame: &Frame<'_>) -> Rule {
    if frame.word(4) != ENHANCE_YOUR_CALM {
        return Rule::Http2;
    }
    let why = frame.start.get(8..).unwrap_or_default();
    let is = |starts: [&[u8]; 2]| starts.iter().any(|start| why.starts_with(start));
    match () {
        () if is([b"too_many_r", b"too_many_i"]) => Rule::ResetFlood,
        () if is([b"too_many_c", b"header_lis"]) => Rule::ContinuationFlood,
        () => Rule::ControlFlood,
    }
}

/// GOAWAY with this error code (RFC 9113 s7), and why in words (s6.8). What came on streams after the last one was not
/// acted on, so that clients send it again.
pub(super) fn goaway(code: u32, last_stream: u32, rule: Rule) -> Vec<u8> {
    let why = rule.detail().as_bytes();
    let length = u8::try_from(8 + why.len()).expect("details are short");
    let head = [0, 0, length, GOAWAY, 0, 0, 0, 0, 0];
    [&head[..], &last_stream.to_be_bytes(), &code.to_be_bytes(), why].concat()
}

/// What may be spent, and what comes back with time: a token bucket that looks at the clock only when empty.
#[derive(Debug)]
struct Budget {
    /// What is broken by spending more.
    rule: Rule,
    most: u32,
    per_second: u32,
    left: u32,
    /// When the clock last filled it.
    filled: Instant,
}

impl Budget {
    fn earn(&mut self, count: u32) {
        self.left = self.most.min(self.left + count);
    }

    fn spend(&mut self, count: u32) -> Result<(), Rule> {
        self.spend_at(count, Instant::now)
    }

    fn spend_at(&mut self, count: u32, now: impl Fn() -> Instant) -> Result<(), Rule> {
        if self.left < count {
            self.fill(now());
        }
        self.left = self.left.checked_sub(count).ok_or(self.rule)?;
        Ok(())
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let earned = passed.as_millis() * u128::from(self.per_second) / 1000;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        // What makes no whole token yet counts the next time.
        self.filled += Duration::from_secs(1) * earned / self.per_second;
        self.earn(earned.min(self.most));
    }
}

/// The longest start of a frame that is looked at: a head, and what tells one GOAWAY from another.
const LOOK: usize = HEAD + 18;
const HEAD: usize = 9;

/// Where one direction is cut into frames.
#[derive(Debug, Default)]
struct Cut {
    /// Bytes to pass by before the next frame begins.
    left: usize,
    /// The start of a frame that came in pieces.
    start: [u8; LOOK],
    have: usize,
}

/// The head of a frame and the start of what is in it (RFC 9113 s4.1).
#[derive(Debug, PartialEq, Eq)]
struct Frame<'a> {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
    start: &'a [u8],
}

impl Cut {
    /// The next frame whose start is whole; its rest may be still to come.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame<'_>> {
        let passed = self.left.min(bytes.len());
        (*bytes, self.left) = (&bytes[passed..], self.left - passed);
        if bytes.is_empty() || !(self.take(bytes, HEAD) && self.take(bytes, HEAD + self.looked_at())) {
            return None;
        }
        let [high, mid, low, kind, flags, s1, s2, s3, s4, ..] = self.start;
        let length = u32::from_be_bytes([0, high, mid, low]);
        // Without the bit that is reserved.
        let stream = u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]);
        let have = std::mem::take(&mut self.have);
        self.left = length as usize + HEAD - have;
        Some(Frame { length, kind, flags, stream, start: &self.start[HEAD..have] })
    }

    /// Whether `wanted` bytes of the frame's start are there.
    fn take(&mut self, bytes: &mut &[u8], wanted: usize) -> bool {
        let taken = wanted.saturating_sub(self.have).min(bytes.len());
        self.start[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        (*bytes, self.have) = (&bytes[taken..], self.have + taken);
        self.have >= wanted
    }

    /// How much of what is in the frame says what it is.
    fn looked_at(&self) -> usize {
        let [high, mid, low, kind, flags, ..] = self.start;
        let most = match kind {
            DATA if flags & PADDED != 0 => 1,
            WINDOW_UPDATE => 4,
            GOAWAY => LOOK - HEAD,
            _ => 0,
        };
        most.min(u32::from_be_bytes([0, high, mid, low]) as usize)
    }

    fn is_between(&self) -> bool {
        self.left == 0 && self.have == 0
    }
}

impl Frame<'_> {
    /// Bytes of data without padding, of a DATA frame.
    fn content(&self) -> u32 {
        let padding = self.start.first().map_or(0, |padding| 1 + u32::from(*padding));
        self.length.saturating_sub(padding)
    }

    /// Four bytes as a number without its reserved bit; 0 where they are not.
    fn word(&self, at: usize) -> u32 {
        let word = self.start.get(at..at + 4).and_then(|word| word.first_chunk());
        word.map_or(0, |word| u32::from_be_bytes(*word) & 0x7fff_ffff)
    }
}

#[cfg(test)]
mod tests;
