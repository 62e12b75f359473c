//! Answers of the gateway's own.

use std::future::poll_fn;
use std::io::{self, IoSlice};

use bytes::Bytes;
use http::header;
use pingora::prelude::timeout;
use pingora::protocols::http::date::get_cached_date;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollhouse_filters::outcome::{Body, Reply};
use tollhouse_filters::world::ClientBody;

use super::Job;
use super::client::{Begin, Client, unless_stopped};
use super::held::{LAST_CHUNK, chunk};
use super::trouble::{Failure, Trouble};
use crate::proxy::reply::is_ours;

/// What is still to come of a request's body, and is read so that its connection can be kept.
const MOST_DRAINED: u64 = 64 * 1024;

/// How many pieces go out with one call.
const MOST_TOGETHER: usize = 16;
/// The largest body that is copied behind its head.
const MOST_COPIED: usize = 1024;

impl Job<'_> {
    /// Sends a reply through the response filters that were entered.
    pub(super) async fn write<C: Client>(&mut self, client: &mut C, reply: Reply) -> Result<(), Failure> {
        if let Reply::Problem(problem) = &reply {
            self.call.problem = Some(problem.kind.code);
            self.call.refusal = Some(problem.kind.status);
        }
        let mut rendered = self.call.exchange().rendered(reply, &self.request).await;
        let unread = client.unread();
        let keep = self.keep && unread.is_some_and(|unread| unread <= MOST_DRAINED);
        self.keep = keep && !self.gateway.draining.is_on();
        // RFC 9112 s6.2: never both.
        let sized = rendered.head.headers.contains_key(header::CONTENT_LENGTH);
        let chunked = C::HTTP1 && matches!(rendered.body, Body::Stream(_)) && !sized;
        if chunked {
            let _ = rendered.head.insert_header("Transfer-Encoding", "chunked");
        }
        if !rendered.head.headers.contains_key(header::DATE) {
            // RFC 9110 s6.6.1: what comes from a cache has one, which stays.
            let _ = rendered.head.insert_header("Date", get_cached_date());
        }
        let status = rendered.head.status.as_u16();
        let length = match &rendered.body {
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::Stream(_) => None,
        };
        let begun = client.begin(Box::new(rendered.head), !self.keep, length);
        let Begin { head: mut out, .. } = begun.map_err(|_| Trouble::Client)?;
        self.status = Some(status);
        match rendered.body {
            Body::Bytes(bytes) => {
                self.bytes_out += bytes.len() as u64;
                if bytes.len() <= MOST_COPIED {
                    out.extend_from_slice(&bytes);
                    self.send(client, &out).await?;
                } else {
                    // Held until the body goes out, with which it is one write.
                    client.write_all(&out).await.map_err(|_| Trouble::Client)?;
                    self.send(client, &bytes).await?;
                }
            }
            Body::Stream(mut pieces) => {
                let as_they_are = !chunked && !self.call.exchange().stack.sees_response_chunks();
                if as_they_are {
                    self.send_ready(client, out, &mut *pieces).await?;
                } else {
                    self.send(client, &out).await?;
                }
                self.send_pieces(client, pieces, chunked).await?;
            }
        }
        client.end(None).map_err(|_| Trouble::Client)?;
        self.whole = true;
        if self.keep {
            self.drain(client).await;
        }
        Ok(())
    }

    /// Sends a head and what is there of its body already, with as few calls as possible.
    async fn send_ready<C: Client>(
        &mut self,
        client: &mut C,
        head: Vec<u8>,
        pieces: &mut dyn ClientBody,
    ) -> Result<(), Failure> {
        if client.sends_files()
            && let Some(mut part) = pieces.file()
        {
            client.write_all(&head).await.map_err(|_| Trouble::Client)?;
            while part.left > 0 {
                let sent = poll_fn(|cx| client.poll_send_file(cx, &mut part)).await;
                self.bytes_out += sent.map_err(|_| Trouble::Client)? as u64;
                if part.left > 0 {
                    // A fast client of a long body is not the only one.
                    tokio::task::yield_now().await;
                }
            }
            return Ok(());
        }
        let mut together = Vec::new();
        if !head.is_empty() {
            together.push(Bytes::from(head));
        }
        loop {
            while together.len() < MOST_TOGETHER
                && let Some(piece) = pieces.ready()
            {
                self.bytes_out += piece.len() as u64;
                together.push(piece);
            }
            if together.is_empty() {
                return Ok(());
            }
            write_together(client, &together).await.map_err(|_| Trouble::Client)?;
            together.clear();
        }
    }

    /// Sends a body as it comes, through the filters that look at pieces.
    async fn send_pieces<C: Client>(
        &mut self,
        client: &mut C,
        mut pieces: Box<dyn ClientBody>,
        chunked: bool,
    ) -> Result<(), Failure> {
        loop {
            let next = unless_stopped(client, pieces.next()).await?.map_err(|error| {
                self.call.reason = Some(error.to_string());
                if is_ours(&error) { Failure::Internal } else { Trouble::Cut.into() }
            });
            let mut piece = next?;
            let end = piece.is_none();
            let filtered = self.call.exchange().response_chunk(&mut piece, end);
            filtered.map_err(|_| Failure::Internal)?;
            let piece = piece.unwrap_or_default();
            self.bytes_out += piece.len() as u64;
            match (piece.is_empty(), chunked) {
                (true, _) => {}
                (false, false) => self.send(client, &piece).await?,
                (false, true) => self.send(client, &chunk(&piece, false)).await?,
            }
            if end {
                if chunked {
                    self.send(client, LAST_CHUNK).await?;
                }
                return client.end(pieces.trailers()).map_err(|_| Trouble::Client.into());
            }
        }
    }

    async fn send<C: Client>(&self, client: &mut C, bytes: &[u8]) -> Result<(), Failure> {
        let sent = async {
            client.write_all(bytes).await?;
            client.flush().await
        };
        sent.await.map_err(|_: std::io::Error| Trouble::Client.into())
    }

    /// Reads what is left of the request's body, which nobody wants.
    async fn drain<C: Client>(&mut self, client: &mut C) {
        if client.is_at_end() {
            return;
        }
        let patience = self.call.exchange().snapshot.server.limits.body_timeout.get();
        let rest = async {
            let mut room = [0; 1024];
            while !client.is_at_end() {
                match client.read(&mut room).await {
                    Ok(n) if n > 0 => self.bytes_in += n as u64,
                    _ => break,
                }
            }
        };
        // On the heap: few requests have one.
        let _ = Box::pin(timeout(patience, rest)).await;
        self.keep = client.is_at_end();
    }
}

/// Writes pieces one after the other, as if they were one.
async fn write_together<C: Client>(client: &mut C, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let n = client.write_vectored(left).await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, n);
    }
    client.flush().await
}
