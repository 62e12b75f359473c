//! Heads of HTTP/2 upstreams' answers, as far as filters cannot see what becomes of them.
//!
//! Clients of HTTP/1.0 know no transfer coding (RFC 9112 s6.1), but Pingora gives such answers one after every filter of
//! ours; and it tells none of them that an answer ends with its head. Its modules come after that, and are told.

use std::any::Any;

use async_trait::async_trait;
use http::{Method, StatusCode, Version, header};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::{HttpModule, HttpModuleBuilder, Module};

/// Makes the module of one request.
pub(super) struct Builder;

/// What is known of the request.
#[derive(Default)]
struct OldClient {
    /// The client is old.
    is_old: bool,
    /// It asks for a head alone.
    is_head: bool,
}

impl HttpModuleBuilder for Builder {
    fn init(&self) -> Module {
        Box::new(OldClient::default())
    }
}

#[async_trait]
impl HttpModule for OldClient {
    async fn request_header_filter(&mut self, request: &mut RequestHeader) -> Result<()> {
        self.is_old = request.version == Version::HTTP_10;
        self.is_head = request.method == Method::HEAD;
        Ok(())
    }

    async fn response_header_filter(&mut self, response: &mut ResponseHeader, end: bool) -> Result<()> {
        if self.is_old {
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        let is_empty = end && !self.is_head && response.status != StatusCode::NOT_MODIFIED;
        if is_empty && !response.headers.contains_key(header::CONTENT_LENGTH) {
            // No bytes are the form of nothing in any coding: `compress` announced one and had nothing to encode.
            response.remove_header(&header::CONTENT_ENCODING);
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
