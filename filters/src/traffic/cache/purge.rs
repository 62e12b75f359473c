//! PURGE requests: whoever has the token takes out what is stored for a URL.

use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use pingora_http::{RequestHeader, ResponseHeader};
use sha2::{Digest, Sha256};

use super::PurgeOptions;
use crate::context::Context;
use crate::outcome::{FilterError, Reply};
use crate::problem::{Problem, UNAUTHORIZED};
use crate::world::{Cached, Purged};

/// Answers PURGE requests.
pub(super) struct Purges {
    token: [u8; 32],
    soft: bool,
    cached: Arc<dyn Cached>,
}

impl Purges {
    pub(super) fn new(options: PurgeOptions, cached: Arc<dyn Cached>) -> Self {
        Self { token: Sha256::digest(options.token.expose()).into(), soft: options.soft, cached }
    }

    /// The answer to a PURGE; none to any other request.
    pub(super) async fn answer(
        &self,
        request: &RequestHeader,
        url: Option<&[u8]>,
        ctx: &Context,
    ) -> Result<Option<Reply>, FilterError> {
        if request.method.as_str() != "PURGE" || ctx.dry_run {
            return Ok(None);
        }
        if !self.may(request) {
            let challenge = HeaderValue::from_static("Bearer realm=\"purge\"");
            let problem = Problem::new(&UNAUTHORIZED).detail("purging needs its token");
            return Ok(Some(problem.header(WWW_AUTHENTICATE, challenge).into()));
        }
        let purged = match url {
            Some(url) => self.cached.purge_url(url, self.soft).await,
            None => Purged::default(),
        };
        let shared = purged.shared.map(|shared| format!(",\"shared\":{shared}")).unwrap_or_default();
        let mut head = ResponseHeader::build(200, Some(2))?;
        head.insert_header(CONTENT_TYPE, "application/json")?;
        Ok(Some(Reply::message(head, format!("{{\"purged\":{}{shared}}}\n", purged.hits))))
    }

    fn may(&self, request: &RequestHeader) -> bool {
        let given = request.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let is_bearer = given.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        // Digests are compared, which tell nothing of how much of the token was right.
        is_bearer && <[u8; 32]>::from(Sha256::digest(given[7..].trim_ascii())) == self.token
    }
}
