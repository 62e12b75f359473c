//! What the service says, and what becomes of it.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora_http::ResponseHeader;

use crate::identity::remote::max_age;
use crate::outcome::{FilterError, Outcome, Reply};
use crate::problem::{FORBIDDEN, Problem};
use crate::world::{ClientError, ClientReply};

/// Field lines.
pub(super) type Fields = Vec<(HeaderName, HeaderValue)>;

/// Which fields of an answer go where.
pub(super) struct Told {
    /// Of one that lets the request pass, to the upstream.
    pub(super) upstream: Vec<HeaderName>,
    /// Of one that lets the request pass, to the client.
    pub(super) client: Vec<HeaderName>,
    /// Of one that does not, to the client.
    pub(super) refused: Vec<HeaderName>,
}

/// What the service decided.
#[derive(Debug)]
pub(super) enum Said {
    /// The request passes, and these are told of it.
    Pass { upstream: Fields, client: Fields },
    /// It does not, and this is the answer.
    Refuse { status: StatusCode, fields: Fields, body: Bytes },
    /// It does not, for this reason, and the answer is a problem of ours.
    Forbid { reason: String },
}

/// The lines of these fields that are there.
pub(super) fn lines(names: &[HeaderName], fields: &HeaderMap) -> Fields {
    let lines = |name: &HeaderName| {
        fields.get_all(name).iter().map(|value| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    names.iter().flat_map(lines).collect()
}

pub(super) fn unavailable(what: impl std::fmt::Display) -> FilterError {
    FilterError::Unavailable(format!("the service that decides: {what}"))
}

/// What an answer by status says: 2xx lets pass, 3xx and 4xx are for the client.
pub(super) async fn read(mut answer: ClientReply, told: &Told, max_body: usize) -> Result<Said, FilterError> {
    let status = answer.head.status;
    if status.is_success() {
        // The connection is good for the next question once this one's answer is through.
        let _ = answer.read_all(max_body).await;
        let fields = &answer.head.headers;
        return Ok(Said::Pass {
            upstream: lines(&told.upstream, fields),
            client: lines(&told.client, fields),
        });
    }
    if !status.is_redirection() && !status.is_client_error() {
        return Err(unavailable(format!("it answered {status}")));
    }
    let mut fields = lines(&told.refused, &answer.head.headers);
    let body = match answer.read_all(max_body).await {
        Ok(body) => body,
        Err(ClientError::TooLarge { .. }) => {
            fields.retain(|(name, _)| *name != header::CONTENT_TYPE);
            Bytes::new()
        }
        Err(error) => return Err(unavailable(error)),
    };
    Ok(Said::Refuse { status, fields, body })
}

impl Said {
    /// What it means for the request.
    pub(super) fn outcome(&self) -> Result<Outcome, FilterError> {
        match self {
            Self::Pass { .. } => Ok(Outcome::Continue),
            Self::Forbid { reason } => Ok(Problem::new(&FORBIDDEN).reason(reason.clone()).into()),
            Self::Refuse { status, fields, body } => {
                let mut head = ResponseHeader::build(*status, Some(fields.len()))?;
                for (name, value) in fields {
                    head.append_header(name.clone(), value.clone())?;
                }
                Ok(Reply::message(head, body.clone()).into())
            }
        }
    }

    /// Bytes that it takes, about.
    pub(super) fn size(&self) -> usize {
        let sum = |fields: &Fields| -> usize {
            fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum()
        };
        match self {
            Self::Pass { upstream, client } => sum(upstream) + sum(client),
            Self::Refuse { fields, body, .. } => sum(fields) + body.len(),
            Self::Forbid { reason } => reason.len(),
        }
    }

    /// Whether it hands a cookie to one client, which nobody else is to get.
    pub(super) fn has_cookie(&self) -> bool {
        let set = |fields: &Fields| fields.iter().any(|(name, _)| *name == header::SET_COOKIE);
        match self {
            Self::Pass { client, .. } => set(client),
            Self::Refuse { fields, .. } => set(fields),
            Self::Forbid { .. } => false,
        }
    }
}

/// How long an answer says that it may be remembered; none if it does not say.
pub(super) fn good_for(answer: &ClientReply) -> Option<Duration> {
    max_age(&answer.head.headers)
}
