//! The content of an answer on its way to the client, through the filters that look at pieces.

use std::task::Context;

use bytes::Bytes;

use super::super::client::Client;
use super::super::held::{LAST_CHUNK, ToClient};
use super::super::progress::Down;
use super::super::trouble::Trouble;
use super::super::wire::Framing;
use super::{Filters, Relay};
use crate::engine::Exchange;

impl<C: Client> Relay<'_, C> {
    /// Passes a piece of the answer on.
    pub(super) fn pass(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        filters: &mut Filters<'_>,
    ) -> Result<(), Trouble> {
        let Down { out, body: Some(body), sent, unflushed, .. } = &mut self.down else { return Ok(()) };
        let to_client = ToClient { client: self.client, cx, out, failed: false };
        let filters = filters.see_answers.then_some(&mut *filters.exchange);
        let mut content =
            Content { to_client, filters, refused: false, chunked: body.chunked, sent, unflushed };
        let taken = match &mut body.framing {
            Framing::None => 0,
            Framing::Length(left) => {
                let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                body.over = *left == 0;
                content.pass(&bytes[..n], body.over);
                n
            }
            Framing::Chunked(chunks) => {
                let followed = chunks.follow_data(bytes, |data| content.pass(data, false));
                body.over = chunks.is_over();
                if body.over {
                    content.pass(&[], true);
                }
                followed.map_err(|_| Trouble::Protocol("the upstream's chunks are not valid"))?
            }
            Framing::Close => {
                content.pass(bytes, false);
                bytes.len()
            }
        };
        body.stray |= taken < bytes.len();
        content.finish(body.over)
    }

    /// The backend closed its side.
    pub(super) fn ended(&mut self, cx: &mut Context<'_>, filters: &mut Filters<'_>) -> Result<(), Trouble> {
        let Some(body) = &mut self.down.body else { return Err(Trouble::Cut) };
        if !matches!(body.framing, Framing::Close) {
            return Err(Trouble::Cut);
        }
        (body.over, body.stray) = (true, true);
        self.conclude(cx, filters)
    }

    /// There is no more of the answer than was passed on.
    pub(super) fn conclude(
        &mut self,
        cx: &mut Context<'_>,
        filters: &mut Filters<'_>,
    ) -> Result<(), Trouble> {
        let Down { out, body: Some(body), sent, unflushed, .. } = &mut self.down else { return Ok(()) };
        let filters = filters.see_answers.then_some(&mut *filters.exchange);
        if matches!(body.framing, Framing::None) {
            // Filters are told, but there is no content for them to make.
            let told = filters.map_or(Ok(()), |filters| filters.response_chunk(&mut None, true));
            return told.map_err(|_| Trouble::Filter);
        }
        let to_client = ToClient { client: self.client, cx, out, failed: false };
        let mut content =
            Content { to_client, filters, refused: false, chunked: body.chunked, sent, unflushed };
        content.pass(&[], true);
        content.finish(true)
    }
}

/// Where content goes.
struct Content<'a, 'b, C> {
    to_client: ToClient<'a, 'b, C>,
    filters: Option<&'a mut Exchange>,
    /// A filter refused a piece: nothing more is sent.
    refused: bool,
    chunked: bool,
    sent: &'a mut u64,
    unflushed: &'a mut bool,
}

impl<C: Client> Content<'_, '_, C> {
    /// Passes a piece on that may be the last.
    fn pass(&mut self, data: &[u8], end: bool) {
        let Some(filters) = &mut self.filters else { return self.send(data) };
        if self.refused {
            return;
        }
        let mut piece = (!data.is_empty()).then(|| Bytes::copy_from_slice(data));
        self.refused = filters.response_chunk(&mut piece, end).is_err();
        if let Some(piece) = piece.filter(|_| !self.refused) {
            self.send(&piece);
        }
    }

    fn send(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        *self.sent += data.len() as u64;
        *self.unflushed = true;
        if self.chunked {
            self.to_client.chunk(data);
        } else {
            self.to_client.send(data);
        }
    }

    /// Ends the content, if it is over.
    fn finish(mut self, over: bool) -> Result<(), Trouble> {
        if self.refused {
            return Err(Trouble::Filter);
        }
        if over && self.chunked {
            self.to_client.write(LAST_CHUNK);
        }
        if self.to_client.failed { Err(Trouble::Client) } else { Ok(()) }
    }
}
