//! The only way an answer of our own leaves.

use bytes::Bytes;
use http::{Version, header};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::protocols::http::ServerSession;
use tollhouse_filters::outcome::{Body, Reply};
use tollhouse_filters::problem::Problem;
use tollhouse_filters::world::ClientError;

use super::{Call, failure};
use crate::engine::{grpc_trailers, speaks_grpc};

/// Sends a reply through the response filters that were entered.
pub(super) async fn write(session: &mut Session, call: &mut Call, reply: Reply) -> Result<()> {
    if let Reply::Problem(problem) = &reply {
        (call.problem, call.refusal) = (Some(problem.kind.code), Some(problem.kind.status));
    }
    let mut rendered = call.exchange().rendered(reply, session.req_header()).await;
    match rendered.body {
        Body::Bytes(bytes) => {
            if bytes.is_empty() {
                return write_whole_head(session, rendered.head).await;
            }
            session.write_response_header(Box::new(rendered.head), false).await?;
            session.write_response_body(Some(bytes), true).await?;
        }
        Body::Stream(mut stream) => {
            // Else its end would be that of the connection, and one that was cut would look whole (RFC 9112 s8).
            let sized = rendered.head.headers.contains_key(header::CONTENT_LENGTH);
            if !sized && call.version == Version::HTTP_11 {
                let _ = rendered.head.insert_header(header::TRANSFER_ENCODING, "chunked");
            }
            session.write_response_header(Box::new(rendered.head), false).await?;
            while let Some(piece) = stream.next().await.map_err(|error| broken(call, &error))? {
                let piece = filtered(call, Some(piece), false)?;
                session.write_response_body(piece, false).await?;
            }
            let rest = filtered(call, None, true)?;
            // What filters made of the body, they could not tell of in trailers.
            let trailers = stream.trailers().filter(|_| call.version == Version::HTTP_2);
            session.write_response_body(rest.or(Some(Bytes::new())), trailers.is_none()).await?;
            if let Some(trailers) = trailers {
                session.downstream_session.write_response_trailers(trailers).await?;
            }
        }
    }
    Ok(())
}

fn filtered(call: &mut Call, mut piece: Option<Bytes>, end: bool) -> Result<Option<Bytes>> {
    let filtered = call.exchange().response_chunk(&mut piece, end);
    filtered.map_err(|_| {
        call.reason = Some("a response filter failed".to_owned());
        Error::new_in(ErrorType::InternalError)
    })?;
    Ok(piece)
}

/// Sends an answer that ends with its head. On HTTP/2 the head itself has to say so: gRPC knows an answer
/// of trailers only by that, and Pingora resets the stream of a failed request that has not ended.
async fn write_whole_head(session: &mut Session, head: ResponseHeader) -> Result<()> {
    match &mut *session.downstream_session {
        ServerSession::H2(stream) => stream.write_response_header(Box::new(head), true),
        _ => session.write_response_header(Box::new(head), true).await,
    }
}

/// Ends a gRPC call whose answer broke off: the trailers say why, where a reset stream says CANCELLED,
/// as if the client had wanted it.
pub(super) fn end_call(session: &mut Session, problem: &Problem) {
    let of_grpc = failure::final_head(session).is_some_and(|head| speaks_grpc(&head.headers));
    if let ServerSession::H2(stream) = &mut *session.downstream_session
        && of_grpc
        && let Err(error) = stream.write_trailers(grpc_trailers(problem))
    {
        log::debug!("cannot end a call: {error}");
    }
}

/// The body of the reply broke off.
fn broken(call: &mut Call, error: &ClientError) -> Box<Error> {
    call.reason = Some(error.to_string());
    if is_ours(error) { Error::new_in(ErrorType::ReadError) } else { Error::new_up(ErrorType::ReadError) }
}

/// Whether the body of a reply broke off here, as what is stored cannot be read or a filter failed, and not where it
/// came from.
pub(super) const fn is_ours(error: &ClientError) -> bool {
    matches!(error, ClientError::Unavailable(_))
}

#[cfg(test)]
mod tests {
    use pingora::ErrorSource;

    use super::*;

    #[test]
    fn a_body_that_breaks_off_is_the_upstreams_fault_only_where_it_came_from_there() {
        for (error, source) in [
            (ClientError::Broken("the upstream's answer broke off".to_owned()), ErrorSource::Upstream),
            (ClientError::Timeout, ErrorSource::Upstream),
            (ClientError::Unavailable("a stored body cannot be read".into()), ErrorSource::Internal),
        ] {
            let mut call = Call::default();
            assert_eq!(*broken(&mut call, &error).esource(), source);
            assert_eq!(call.reason, Some(error.to_string()));
        }
    }
}
