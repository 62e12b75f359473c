//! Server-Sent Events (WHATWG HTML s9.2): who asks for them, and what is a stream of them.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};

/// The type of their content, without parameters.
const TYPE: &[u8] = b"text/event-stream";

/// Whether a request with these fields asks for events, as EventSource does (s9.2.2).
#[must_use]
pub fn are_asked_for(request: &HeaderMap) -> bool {
    let mut lines = request.get_all(ACCEPT).iter().map(HeaderValue::as_bytes);
    lines.any(|line| line.windows(TYPE.len()).any(|part| part.eq_ignore_ascii_case(TYPE)))
}

/// Whether an answer with these fields is a stream of events, which has no natural end.
#[must_use]
pub fn are_in(answer: &HeaderMap) -> bool {
    answer.get(CONTENT_TYPE).is_some_and(|content_type| are_of_type(content_type.as_bytes()))
}

/// Whether content of this type is such a stream.
#[must_use]
pub fn are_of_type(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: http::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|&value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn who_takes_events_among_others_asks_for_them() {
        for values in [&["text/event-stream"][..], &["text/html", "a/b, Text/Event-Stream;q=0.9"]] {
            assert!(are_asked_for(&of(ACCEPT, values)), "{values:?}");
        }
        for values in [&[][..], &["*/*"], &["text/*", "text/plain"]] {
            assert!(!are_asked_for(&of(ACCEPT, values)), "{values:?}");
        }
    }

    #[test]
    fn parameters_and_the_case_of_letters_are_no_part_of_a_type_as_rfc_9110_s8_3_1_says() {
        for value in ["text/event-stream", "Text/Event-Stream;charset=utf-8", " text/event-stream ; a=b"] {
            assert!(are_of_type(value.as_bytes()), "{value}");
        }
        for value in ["", "text/plain", "text/event-streams", "a/b; c=text/event-stream"] {
            assert!(!are_of_type(value.as_bytes()), "{value}");
        }
        assert!(are_in(&of(CONTENT_TYPE, &["text/event-stream"])) && !are_in(&HeaderMap::new()));
    }
}
