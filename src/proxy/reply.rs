//! The only way an answer of our own leaves.

use bytes::Bytes;
use pingora::ErrorType;
use pingora::prelude::*;
use tollhouse_filters::outcome::{Body, Reply};

use super::Call;

/// Sends a reply through the response filters that were entered.
pub(super) async fn write(session: &mut Session, call: &mut Call, reply: Reply) -> Result<()> {
    if let Reply::Problem(problem) = &reply {
        call.problem = Some(problem.kind.code);
    }
    let rendered = call.exchange().rendered(reply, session.req_header()).await;
    match rendered.body {
        Body::Bytes(bytes) => {
            let end = bytes.is_empty();
            session.write_response_header(Box::new(rendered.head), end).await?;
            if !end {
                session.write_response_body(Some(bytes), true).await?;
            }
        }
        Body::Stream(mut stream) => {
            session.write_response_header(Box::new(rendered.head), false).await?;
            while let Some(piece) = stream.next().await.map_err(broken)? {
                let piece = filtered(call, Some(piece), false)?;
                session.write_response_body(piece, false).await?;
            }
            let rest = filtered(call, None, true)?;
            session.write_response_body(rest.or(Some(Bytes::new())), true).await?;
        }
    }
    Ok(())
}

fn filtered(call: &mut Call, mut piece: Option<Bytes>, end: bool) -> Result<Option<Bytes>> {
    let filtered = call.exchange().response_chunk(&mut piece, end);
    filtered.map_err(|_| Error::explain(ErrorType::InternalError, "a response filter failed"))?;
    Ok(piece)
}

fn broken(error: tollhouse_filters::world::ClientError) -> Box<Error> {
    Error::explain(ErrorType::ReadError, error.to_string()).into_up()
}
