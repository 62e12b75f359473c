//! Answers to clients of HTTP/1.0, which know no transfer coding (RFC 9112 s6.1).
//!
//! Pingora gives answers of HTTP/2 upstreams one after every filter of ours; its modules come after that.

use std::any::Any;

use async_trait::async_trait;
use http::{Version, header};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::{HttpModule, HttpModuleBuilder, Module};

/// Makes the module of one request.
pub(super) struct Builder;

/// Whether the client is old.
#[derive(Default)]
struct OldClient(bool);

impl HttpModuleBuilder for Builder {
    fn init(&self) -> Module {
        Box::new(OldClient::default())
    }
}

#[async_trait]
impl HttpModule for OldClient {
    async fn request_header_filter(&mut self, request: &mut RequestHeader) -> Result<()> {
        self.0 = request.version == Version::HTTP_10;
        Ok(())
    }

    async fn response_header_filter(&mut self, response: &mut ResponseHeader, _end: bool) -> Result<()> {
        if self.0 {
            response.remove_header(&header::TRANSFER_ENCODING);
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
