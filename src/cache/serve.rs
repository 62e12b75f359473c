//! Answers from what is stored, or comes in.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue,
    TRANSFER_ENCODING,
};
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::caching::{CacheStatus, Judgement, Selected, select};
use tollhouse_filters::outcome::{Body, Message, Reply};
use tollhouse_filters::problem::{self, Problem};

use super::growing::{Growing, Reader};
use super::head;
use super::store::{Entry, Pieces};
use crate::engine::Exchange;

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
    let body = match selected {
        Selected::Whole => {
            put(&mut head, CONTENT_LENGTH, HeaderValue::from(length));
            body(entry.body())
        }
        Selected::NotModified => {
            not_modified(&mut head);
            Body::Bytes(Bytes::new())
        }
        Selected::Part(first, last) => {
            head.set_status(206).expect("a status");
            put(&mut head, CONTENT_RANGE, range(format_args!("{first}-{last}"), length));
            put(&mut head, CONTENT_LENGTH, HeaderValue::from(last - first + 1));
            body(entry.range(first..last + 1))
        }
        Selected::NoSuchPart => {
            head.set_status(416).expect("a status");
            put(&mut head, CONTENT_RANGE, range(format_args!("*"), length));
            Body::Bytes(Bytes::new())
        }
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
    let selected = select((&request.method, &request.headers), (head.status, &head.headers), u64::MAX);
    if selected == Selected::NotModified {
        not_modified(&mut head);
        return Reply::message(head, Bytes::new());
    }
    // A part may be asked for of what is whole only; all of it is an answer too (RFC 9110 s14.2).
    Reply::Message(Box::new(Message { head, body: Body::Stream(Box::new(reader)) }))
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
