//! Answers from what is stored, or comes in.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, HeaderValue,
    TRANSFER_ENCODING,
};
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::caching::{CacheStatus, Facts, Judgement, Selected, select};
use tollhouse_filters::outcome::{Body, Message, Reply};
use tollhouse_filters::problem::{self, Problem};

use super::growing::{Growing, Reader};
use super::head;
use super::store::{Entry, Pieces};
use crate::engine::Exchange;

/// The last moment that a date can tell, in milliseconds since 1970: the end of the year 9999.
const LAST_DATE: u64 = 253_402_300_799_000;

/// The answer from a stored one, which needs nobody else.
pub(super) fn hit(
    entry: &Arc<Entry>,
    request: &RequestHeader,
    judged: Judgement,
    exchange: &mut Exchange,
) -> Reply {
    exchange.ctx.cache = Some(CacheStatus { hit: true, ttl: Some(judged.ttl), ..CacheStatus::default() });
    self::entry(entry, request, judged)
}

/// The answer from a stored one (RFC 9111 s4): all of it, a part, or that the client has it.
pub(super) fn entry(entry: &Arc<Entry>, request: &RequestHeader, judged: Judgement) -> Reply {
    let Ok(mut head) = head::parse(entry.status(), &entry.lines_bytes()) else {
        return Problem::new(&problem::INTERNAL).into();
    };
    put(&mut head, AGE, HeaderValue::from(judged.age));
    let length = entry.length();
    let selected = select((&request.method, &request.headers), (head.status, &head.headers), length);
    date(&mut head, entry.facts());
    say(selected, &mut head, length);
    let body = match selected {
        Selected::Whole => {
            put(&mut head, CONTENT_LENGTH, HeaderValue::from(length));
            body(entry.body())
        }
        Selected::Part(first, last) => body(entry.range(first..last + 1)),
        Selected::NotModified => Body::Bytes(Bytes::new()),
        Selected::NoSuchPart => return no_such_part(length),
    };
    Reply::Message(Box::new(Message { head, body }))
}

/// The answer that comes in; judged, if it comes in for another request.
pub(super) fn growing(
    growing: &Growing,
    reader: Reader,
    request: &RequestHeader,
    judged: Option<Judgement>,
) -> Reply {
    let mut head = growing.head.clone();
    if let Some(judged) = judged {
        put(&mut head, AGE, HeaderValue::from(judged.age));
    }
    let told = length(&head);
    let length = told.unwrap_or(u64::MAX);
    let mut selected = select((&request.method, &request.headers), (head.status, &head.headers), length);
    if told.is_none() && selected != Selected::NotModified {
        // Of how much it is a part nobody knows yet; all of it is an answer too (RFC 9110 s14.2).
        selected = Selected::Whole;
    }
    date(&mut head, &growing.facts);
    say(selected, &mut head, length);
    let body = match selected {
        Selected::Whole => Body::Stream(Box::new(reader)),
        Selected::Part(first, last) => Body::Stream(Box::new(reader.part(first..last + 1))),
        Selected::NotModified => Body::Bytes(Bytes::new()),
        Selected::NoSuchPart => return no_such_part(length),
    };
    Reply::Message(Box::new(Message { head, body }))
}

/// Says when it came, where its origin does not say when it was made (RFC 9110 s6.6.1). Only when it is sent: no clock of
/// ours makes a date of the origin's a strong validator (s8.8.2.2).
fn date(head: &mut ResponseHeader, facts: &Facts) {
    if !head.headers.contains_key(DATE) {
        let came = UNIX_EPOCH + Duration::from_millis(facts.received.min(LAST_DATE));
        put(head, DATE, HeaderValue::try_from(httpdate::fmt_http_date(came)).expect("dates are visible"));
    }
}

/// Makes the head say what is sent of content of this length, unless that is all of it.
fn say(selected: Selected, head: &mut ResponseHeader, length: u64) {
    match selected {
        // Of what there is no part, nothing else is said either.
        Selected::Whole | Selected::NoSuchPart => {}
        Selected::NotModified => not_modified(head),
        Selected::Part(first, last) => {
            head.set_status(206).expect("a status");
            put(head, CONTENT_RANGE, range(format_args!("{first}-{last}"), length));
            put(head, CONTENT_LENGTH, HeaderValue::from(last - first + 1));
        }
    }
}

/// RFC 9110 s15.5.17. With what is stored of freshness, it could be kept for those who ask for all (RFC 9111 s3).
fn no_such_part(length: u64) -> Reply {
    let all = range(format_args!("*"), length);
    Problem::new(&problem::RANGE_NOT_SATISFIABLE).header(CONTENT_RANGE, all).into()
}

/// The length that a head tells.
fn length(head: &ResponseHeader) -> Option<u64> {
    head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// RFC 9110 s15.4.5: nothing of the content that is not sent.
fn not_modified(head: &mut ResponseHeader) {
    head.set_status(304).expect("a status");
    for name in
        [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_RANGE, TRANSFER_ENCODING]
    {
        head.remove_header(&name);
    }
}

fn range(which: std::fmt::Arguments<'_>, length: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes {which}/{length}")).expect("digits")
}

fn body(mut pieces: Pieces) -> Body {
    if pieces.are_many() {
        Body::Stream(Box::new(pieces))
    } else {
        Body::Bytes(pieces.next().unwrap_or_default())
    }
}

fn put(head: &mut ResponseHeader, name: http::HeaderName, value: HeaderValue) {
    let _ = head.insert_header(name, value);
}
