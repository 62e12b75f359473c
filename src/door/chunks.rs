//! Follows a chunked body (RFC 9112 s7.1) to its end: what comes after it is another request, and what
//! is not exactly a chunked body is none at all.

use super::Rule;
use super::head::{is_field_value, is_token};

/// Bytes of chunk extensions in one body; nobody is known to need them (RFC 9112 s7.1.1 asks for a limit).
const MAX_EXTENSIONS: u16 = 4096;
/// Bytes of trailer fields in one body.
const MAX_TRAILERS: u16 = 8192;
/// Digits of a chunk's size: more can only be zeros, or more than can be counted.
const MAX_DIGITS: u8 = 16;

/// Where in a chunked body one is.
#[derive(Debug, Default)]
pub struct Chunks {
    place: Place,
    /// Of the chunk: its size while that is read, then what is left of it.
    left: u64,
    extensions: u16,
    trailers: u16,
    /// White space may follow a size, as some old servers write it.
    padded: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before a chunk's size.
    #[default]
    Begin,
    /// After this many digits of it.
    Size(u8),
    /// In the white space after it.
    Padding,
    /// In the extensions after it.
    Extension(Extension),
    /// Before the LF of its line.
    SizeLf,
    /// In the chunk.
    Data,
    /// Before the CR and the LF after the chunk.
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// Before the very last LF.
    EndLf,
    End,
}

/// Where in the extensions of a chunk one is (RFC 9112 s7.1.1): `;name`, `;name=token`, `;name="quoted"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// Before a name.
    Begin,
    Name,
    /// After a name and white space.
    AfterName,
    /// Before a value.
    Equals,
    Value,
    Quoted,
    /// After a backslash in quotes.
    Escaped,
    /// After the closing quote.
    Unquoted,
    /// After a value and white space.
    AfterValue,
}

impl Extension {
    /// Where one is after this byte; `None` where it is none of an extension.
    fn step(self, byte: u8) -> Option<Self> {
        use Extension as E;
        Some(match (self, byte) {
            (E::Quoted, b'"') => E::Unquoted,
            (E::Quoted, b'\\') => E::Escaped,
            (E::Quoted | E::Escaped, _) if is_field_value(byte) => E::Quoted,
            (E::Begin | E::Name, _) if is_token(byte) => E::Name,
            (E::Equals | E::Value, _) if is_token(byte) => E::Value,
            (E::Equals, b'"') => E::Quoted,
            (E::Name | E::AfterName, b'=') => E::Equals,
            (E::Name | E::AfterName | E::Value | E::Unquoted | E::AfterValue, b';') => E::Begin,
            // White space that is only there for old senders.
            (E::Begin | E::Equals, b' ' | b'\t') => self,
            (E::Name | E::AfterName, b' ' | b'\t') => E::AfterName,
            (E::Value | E::Unquoted | E::AfterValue, b' ' | b'\t') => E::AfterValue,
            _ => return None,
        })
    }

    /// Whether the line may end here.
    fn is_whole(self) -> bool {
        matches!(self, Self::Name | Self::Value | Self::Unquoted)
    }
}

impl Chunks {
    /// A body that an origin sends.
    pub fn of_origin() -> Self {
        Self { padded: true, ..Self::default() }
    }

    /// How many of these bytes, which follow those before, belong to the body; fewer than all only at its end.
    ///
    /// # Errors
    /// The rule that a byte breaks.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<usize, Rule> {
        self.follow_data(bytes, |_| {})
    }

    /// As [`follow`](Self::follow), and gives what is data of these bytes.
    ///
    /// # Errors
    /// The rule that a byte breaks.
    pub fn follow_data(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, Rule> {
        let mut at = 0;
        while at < bytes.len() && self.place != Place::End {
            if self.place == Place::Data {
                let here = (bytes.len() - at).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= here as u64;
                data(&bytes[at..at + here]);
                at += here;
                if self.left == 0 {
                    self.place = Place::DataCr;
                }
            } else {
                self.place = self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// Whether the body is over.
    pub fn is_over(&self) -> bool {
        self.place == Place::End
    }

    fn step(&mut self, byte: u8) -> Result<Place, Rule> {
        use Place as P;
        Ok(match (self.place, byte) {
            (P::Begin, _) if byte.is_ascii_hexdigit() => self.digit(byte, 1)?,
            (P::Size(digits), _) if byte.is_ascii_hexdigit() => self.digit(byte, digits + 1)?,
            (P::Size(_), b';') => P::Extension(Extension::Begin),
            (P::Size(_) | P::Padding, b'\r') => P::SizeLf,
            (P::Size(_) | P::Padding, b' ' | b'\t') if self.padded => P::Padding,
            (P::Extension(place), b'\r') if place.is_whole() => P::SizeLf,
            (P::Extension(place), _) => {
                count(&mut self.extensions, MAX_EXTENSIONS, Rule::Chunk)?;
                P::Extension(place.step(byte).ok_or(Rule::Chunk)?)
            }
            (P::SizeLf, b'\n') => {
                if self.left == 0 {
                    P::Trailer
                } else {
                    P::Data
                }
            }
            (P::DataCr, b'\r') => P::DataLf,
            (P::DataLf, b'\n') => P::Begin,
            (P::Trailer, b'\r') => P::EndLf,
            (P::EndLf, b'\n') => P::End,
            (P::Trailer | P::TrailerName | P::TrailerValue, _) => self.trailer(byte)?,
            (P::TrailerLf, b'\n') => P::Trailer,
            (P::TrailerLf, _) => return Err(Rule::Trailer),
            _ => return Err(Rule::Chunk),
        })
    }

    fn digit(&mut self, byte: u8, digits: u8) -> Result<Place, Rule> {
        let value = char::from(byte).to_digit(16).map(u64::from).ok_or(Rule::Chunk)?;
        let size = if digits == 1 { Some(value) } else { self.left.checked_mul(16).map(|size| size + value) };
        self.left =
            size.filter(|size| digits <= MAX_DIGITS && *size <= i64::MAX as u64).ok_or(Rule::Chunk)?;
        Ok(Place::Size(digits))
    }

    fn trailer(&mut self, byte: u8) -> Result<Place, Rule> {
        count(&mut self.trailers, MAX_TRAILERS, Rule::Trailer)?;
        match (self.place, byte) {
            (Place::TrailerName, b':') => Ok(Place::TrailerValue),
            (Place::Trailer | Place::TrailerName, _) if is_token(byte) => Ok(Place::TrailerName),
            (Place::TrailerValue, b'\r') => Ok(Place::TrailerLf),
            (Place::TrailerValue, _) if is_field_value(byte) => Ok(Place::TrailerValue),
            _ => Err(Rule::Trailer),
        }
    }
}

fn count(bytes: &mut u16, max: u16, rule: Rule) -> Result<(), Rule> {
    *bytes += 1;
    if *bytes > max { Err(rule) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How long the body is that these bytes begin with; `None` when it goes on.
    fn length(bytes: impl AsRef<[u8]>) -> Result<Option<usize>, Rule> {
        let mut chunks = Chunks::default();
        let length = chunks.follow(bytes.as_ref())?;
        Ok(chunks.is_over().then_some(length))
    }

    #[test]
    fn a_body_ends_after_its_last_chunk_and_its_trailers() {
        for body in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "003\r\nabc\r\n000\r\n\r\n",
            "a\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
            "3;a=b;c=\"d\"\r\nabc\r\n0;e\r\n\r\n",
            "3; a = b ; c = \"\\\";\t\u{e9}\" ;d\r\nabc\r\n0\r\n\r\n",
            "0\r\nA: b\r\nC:\r\n\r\n",
        ] {
            assert_eq!(length(format!("{body}GET / HTTP/1.1\r\n")), Ok(Some(body.len())), "{body:?}");
        }
    }

    #[test]
    fn what_another_server_may_read_in_another_way_is_no_chunk() {
        for body in [
            "\r\n",
            "g\r\n",
            " 3\r\n",
            "3 \r\n",
            "3\t\r\n",
            "0x3\r\n",
            "+3\r\n",
            "-3\r\n",
            "3\n",
            "3\r\r\n",
            "3\r\nabcX",
            "3\r\nabc\n",
            "3\r\nabc\rX",
            "3\r\nabc0\r\n",
            "3;a=b\n",
            "3;a=\0\r\n",
            "3;\r\n",
            "3;;a\r\n",
            "3;a \r\n",
            "3;a=\r\n",
            "3;a=\"\r\n",
            "3;a=\"b\r\n\"\r\n",
            "3;a=\"b\\\r\n",
            "3;a=\"b\"c\r\n",
            "3;a b\r\n",
            "3;=b\r\n",
            "3,a\r\n",
            "8000000000000000\r\n",
            "10000000000000000\r\n",
            "00000000000000003\r\n",
            ";a\r\n",
        ] {
            assert_eq!(length(body), Err(Rule::Chunk), "{body:?}");
        }
        for body in
            ["0\r\nA b: c\r\n", "0\r\n: c\r\n", "0\r\nA : c\r\n", "0\r\n A: c\r\n", "0\r\nA: c\n", "0\r\n\n"]
        {
            assert_eq!(length(body), Err(Rule::Trailer), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_have_an_end() {
        let extension = "a".repeat(usize::from(MAX_EXTENSIONS));
        assert_eq!(length(format!("1;{extension}")), Ok(None));
        assert_eq!(length(format!("1;{extension}a")), Err(Rule::Chunk));
        let trailer = format!("0\r\nA:{}", "b".repeat(usize::from(MAX_TRAILERS) - 2));
        assert_eq!(length(&trailer), Ok(None));
        assert_eq!(length(format!("{trailer}b")), Err(Rule::Trailer));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes in "[0-3a;\\r\\nX:]{0,40}", cuts in proptest::collection::vec(0..40usize, 0..4)) {
            let mut chunks = Chunks::default();
            let mut pieces = Ok(0);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            for piece in cuts.windows(2).map(|cut| &bytes.as_bytes()[cut[0]..cut[1]]) {
                pieces = pieces.and_then(|before| chunks.follow(piece).map(|here| before + here));
            }
            let mut whole = Chunks::default();
            prop_assert_eq!(whole.follow(bytes.as_bytes()), pieces);
        }

        #[test]
        fn what_is_written_by_the_grammar_is_read_to_its_end(
            chunks in proptest::collection::vec((1..20usize, "( ?; ?[a!]( ?= ?([b~]|\"[c; ]{0,3}\"))?){0,2}"), 0..4),
            trailers in proptest::collection::vec("[A-Z]{1,3}:[ -~\t]{0,5}", 0..3),
            after in "[0-9a\r\n]{0,9}",
        ) {
            let mut body = String::new();
            for (size, extension) in &chunks {
                // Before the first semicolon, white space is refused.
                body += &format!("{size:x}{}\r\n{}\r\n", extension.trim_start(), "x".repeat(*size));
            }
            let trailers: String = trailers.iter().map(|line| format!("{line}\r\n")).collect();
            body += &format!("0\r\n{trailers}\r\n");
            prop_assert_eq!(length(format!("{body}{after}")), Ok(Some(body.len())));
        }
    }
}
