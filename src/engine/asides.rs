//! Requests of which nobody waits for the answer: on a thread and over connections of their own, so that they
//! neither delay nor fail any other.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pingora::http::ResponseHeader;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tollhouse_filters::world::{Aside, ClientError};

use super::background::apart;
use super::side_calls::failed;
use crate::upstream::Upstream;
use crate::upstream::call::{CallOptions, Caller};

/// Sends such requests for as long as it lives.
pub(super) struct Asides {
    caller: Caller,
    runtime: Handle,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

impl Asides {
    pub(super) fn open() -> io::Result<Self> {
        let (runtime, stop) = apart("mirror")?;
        Ok(Self { caller: Caller::new(), runtime, _stop: stop })
    }

    pub(super) fn send(&self, upstream: Arc<Upstream>, aside: Aside) {
        let caller = self.caller.clone();
        self.runtime.spawn(async move {
            let Aside { head, body, timeout, keep, then, .. } = aside;
            let options = CallOptions { timeout: Some(Some(timeout)), ..CallOptions::default() };
            let answer = async {
                let mut reply = caller.send(&upstream, head, body, options).await.map_err(failed)?;
                let mut kept = Some(BytesMut::new());
                // All of it is read, for the connection to be kept.
                while let Some(piece) = reply.body.next().await.map_err(failed)? {
                    match &mut kept {
                        Some(body) if piece.len() <= keep.saturating_sub(body.len()) => {
                            body.extend_from_slice(&piece);
                        }
                        _ => kept = None,
                    }
                }
                Ok::<(ResponseHeader, Option<Bytes>), ClientError>((reply.head, kept.map(BytesMut::freeze)))
            };
            then(Box::pin(answer).await);
        });
    }
}
