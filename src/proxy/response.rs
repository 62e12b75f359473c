//! The upstream's answer on its way to the client.

use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use tollhouse_filters::events;
use tollhouse_filters::problem::{self, Problem};

use super::{Call, Gateway, failure, finish};
use crate::door;
use crate::upstream::InFlight;

/// Interim answers that one request may get; more than that is an upstream gone wild.
pub(super) const MAX_INTERIM: u32 = 100;

impl Gateway {
    /// Runs the entered filters on the final head; interim ones pass untouched.
    pub(super) async fn respond(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        call: &mut Call,
    ) -> Result<()> {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            strip_interim(response);
            in_time(call)?;
            return announced(call);
        }
        if let Some(error) = self.answer_is_fault(session, response, call) {
            return Err(error);
        }
        if let Err(problem) = accept(response, call) {
            return failure::refuse(call, problem.into());
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            door::tunnelled(session);
        } else {
            if std::mem::take(&mut call.upgrade) {
                // It was to be a tunnel, which may be silent for longer.
                let idle = call.exchange().snapshot.server.limits.idle_timeout.get();
                session.set_write_timeout(Some(idle));
            }
            strip_hop_by_hop(response);
            // It is about the upstream's connection, and a stand-in would take it for a word of ours.
            response.remove_header(&header::CONNECTION);
        }
        call.exchange().invalidate(session.req_header(), response.status, &response.headers);
        if let Err(problem) = call.exchange().response(session.req_header(), response).await {
            return failure::refuse(call, problem.into());
        }
        call.stick(response);
        let ends_with_connection = frame(&session.req_header().method, response, call.version);
        if ends_with_connection || self.draining.is_on() || session.is_process_shutting_down() {
            close(session, response);
        }
        call.attempts.answered = true;
        Ok(())
    }
}

/// Makes an interim head one for the client: without framing, and without what concerns the upstream's connection only
/// (RFC 9110 s7.6.1).
pub(super) fn strip_interim(interim: &mut ResponseHeader) {
    remove_framing(interim);
    strip_hop_by_hop(interim);
    interim.remove_header(&header::CONNECTION);
}

/// Counts an interim head, that is about to be passed on.
fn announced(call: &mut Call) -> Result<()> {
    call.attempts.heard = true;
    call.interim += 1;
    if call.interim <= MAX_INTERIM {
        return Ok(());
    }
    call.reason = Some("too many interim answers".to_owned());
    Err(Error::new_up(ErrorType::InvalidHTTPHeader))
}

/// Takes a final head for the answer of the attempt, if it can be passed on.
pub(super) fn accept(response: &ResponseHeader, call: &mut Call) -> std::result::Result<(), Problem> {
    if let Some(detail) = unusable(response, call.upgrade) {
        guard(call, InFlight::failed);
        return Err(Problem::new(&problem::UPSTREAM_PROTOCOL).detail(detail));
    }
    answered(response.status.as_u16(), call);
    call.events = events::are_in(&response.headers);
    Ok(())
}

/// Takes a final answer with this status, that is no stream of events, for that of the attempt.
pub(super) fn answered(status: u16, call: &mut Call) {
    guard(call, |guard| guard.answered(status));
    call.events = false;
    // Not when it ends: it may go on for hours.
    finish::settle(call);
}

/// Tells what became of the attempt.
fn guard(call: &mut Call, tell: impl FnOnce(&mut InFlight)) {
    if let Some(picked) = &mut call.attempts.picked {
        tell(&mut picked.guard);
    }
}

/// Makes the head say where the answer ends: a filter that changes the body takes its length away, and
/// then it comes in chunks. True where only the end of the connection can say it.
pub(super) fn frame(method: &Method, response: &mut ResponseHeader, version: Version) -> bool {
    // What the origin speaks is not what we speak (RFC 9110 s2.5).
    response.set_version(Version::HTTP_11);
    if matches!(response.status, StatusCode::NO_CONTENT | StatusCode::SWITCHING_PROTOCOLS) {
        remove_framing(response);
    }
    if response.headers.contains_key(header::CONTENT_LENGTH) {
        return false;
    }
    if version != Version::HTTP_2 {
        // Trailers of HTTP/1 are dropped.
        response.remove_header(&header::TRAILER);
    }
    let framed = response.headers.contains_key(header::TRANSFER_ENCODING) && version != Version::HTTP_10;
    let bodiless = method == Method::HEAD
        || response.status.is_informational()
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if framed || bodiless {
        return false;
    }
    if version != Version::HTTP_10 {
        let _ = response.insert_header(header::TRANSFER_ENCODING, "chunked");
    }
    version == Version::HTTP_10
}

/// RFC 9110 s8.6 and RFC 9112 s6.1: these answers have neither length nor coding.
fn remove_framing(response: &mut ResponseHeader) {
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        response.remove_header(&name);
    }
}

/// Makes this the last answer on its connection. A stand-in takes its word from the head; a 101 says `Upgrade` there
/// (RFC 6455 s4.1), and is the last one without a word.
fn close(session: &mut Session, response: &mut ResponseHeader) {
    session.set_keepalive(None);
    if session.downstream_session.is_custom() && response.status != StatusCode::SWITCHING_PROTOCOLS {
        let _ = response.insert_header(header::CONNECTION, "close");
    }
}

/// What is wrong with an answer that must not reach the client: it would not know where it ends.
fn unusable(response: &ResponseHeader, upgrade: bool) -> Option<&'static str> {
    // RFC 9110 s15.2.2: only to a client that asked.
    if response.status == StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        return Some("the upstream switched protocols unasked");
    }
    let agreed = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    if response.status == StatusCode::SWITCHING_PROTOCOLS
        && !response.headers.get(header::UPGRADE).is_some_and(agreed)
    {
        return Some("the upstream switched to another protocol");
    }
    let mut lengths = response.headers.get_all(header::CONTENT_LENGTH).iter();
    let one = |length: &HeaderValue| content_length(length.as_bytes()).is_some();
    if !lengths.next().is_none_or(one) || lengths.next().is_some() {
        return Some("the upstream's `Content-Length` is not one number");
    }
    let mut codings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next().map(|coding| coding.as_bytes().trim_ascii());
    let known =
        coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"chunked")) && codings.next().is_none();
    (!known).then_some("the upstream used an unknown transfer coding")
}

/// A length as RFC 9110 s8.6 writes it, and not more than can be counted.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let more = |sum: u64, byte: &u8| sum.checked_mul(10)?.checked_add(digit(*byte)?);
    let length = value.iter().try_fold(0, more)?;
    (!value.is_empty() && length <= i64::MAX as u64).then_some(length)
}

/// Shows a piece of the answer to the filters that look at pieces, and minds the deadline.
pub(super) fn pass(piece: &mut Option<Bytes>, end: bool, call: &mut Call) -> Result<()> {
    if call.upgrade {
        // What follows a 101 is no body.
        return Ok(());
    }
    if !call.events {
        in_time(call)?;
    }
    match call.exchange().response_chunk(piece, end) {
        Ok(()) => Ok(()),
        // Answered only if the head is still here; else the client sees a broken body.
        Err(problem) => failure::refuse(call, problem.into()),
    }
}

/// Ends the body before trailers: what filters still held back, which then is sent in their place.
pub(super) fn end(call: &mut Call) -> Result<Option<Bytes>> {
    let mut rest = None;
    pass(&mut rest, true, call)?;
    Ok(rest.filter(|rest| !rest.is_empty()))
}

/// Each piece of an answer in time for the read timeout does not make the whole of it so. Nobody is to blame: the client
/// may have been slow to take it.
fn in_time(call: &mut Call) -> Result<()> {
    let overdue = call.exchange().ctx.deadline.is_some_and(|deadline| Instant::now() > deadline);
    if !overdue {
        return Ok(());
    }
    call.reason = Some(failure::TOTAL.to_owned());
    Err(Error::new(ErrorType::ReadTimedout))
}

/// What concerns the upstream's connection only; `Transfer-Encoding` is Pingora's to translate.
pub(super) fn strip_hop_by_hop(response: &mut ResponseHeader) {
    const OWN: [HeaderName; 3] =
        [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), header::UPGRADE];
    let lines = response.headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let named: Vec<HeaderName> = lines
        // What nearly all say names no field.
        .filter(|line| !matches!(*line, "keep-alive" | "close"))
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::TRANSFER_ENCODING && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&OWN) {
        response.remove_header(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, codings: &[&str]) -> ResponseHeader {
        let mut response = ResponseHeader::build(status, None).expect("valid");
        for coding in codings {
            response.append_header(header::TRANSFER_ENCODING, *coding).expect("valid");
        }
        response
    }

    #[test]
    fn a_length_is_digits_that_can_be_counted_as_rfc_9110_s8_6_says() {
        for (text, length) in
            [("0", 0), ("10240", 10_240), ("007", 7), ("9223372036854775807", i64::MAX as u64)]
        {
            assert_eq!(content_length(text.as_bytes()), Some(length), "{text}");
        }
        for text in
            ["", "+1", "-1", "1 ", "1,1", "0x1", "9223372036854775808", "18446744073709551616", "\u{661}"]
        {
            assert_eq!(content_length(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_upstream_switches_protocols_only_when_asked() {
        assert!(unusable(&response(101, &[]), false).is_some());
        let mut switched = response(101, &[]);
        assert!(unusable(&switched, true).is_some(), "RFC 9110 s15.2.2: it must say to which");
        switched.insert_header("upgrade", "h2c").expect("valid");
        assert!(unusable(&switched, true).is_some());
        switched.insert_header("upgrade", "WebSocket").expect("valid");
        assert_eq!(unusable(&switched, true), None);
    }

    #[test]
    fn chunked_is_the_only_transfer_coding_of_an_answer() {
        for codings in [&["xchunked"][..], &["gzip, chunked"], &["chunked", "chunked"]] {
            assert!(unusable(&response(200, codings), false).is_some(), "{codings:?}");
        }
        for codings in [&[][..], &["chunked"], &["Chunked"]] {
            assert_eq!(unusable(&response(200, codings), false), None, "{codings:?}");
        }
    }
}
