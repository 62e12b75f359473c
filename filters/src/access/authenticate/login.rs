//! Where users log in with a browser: what is for the identity itself, and who is sent there.

use async_trait::async_trait;
use http::header::{CACHE_CONTROL, SET_COOKIE};
use pingora_http::{RequestHeader, ResponseHeader};

use super::{Authenticate, Refused};
use crate::context::{Context, Verdict};
use crate::identity::{Answered, Login};
use crate::outcome::{FilterError, Outcome};
use crate::phase::OnResponse;

impl Authenticate {
    fn login(&self, at: usize) -> Option<&dyn Login> {
        self.identities.get(at)?.login()
    }

    /// Answers a request that is for an identity itself. What its body decides goes on until that is there, and never
    /// further.
    pub(super) async fn for_login(&self, request: &RequestHeader, ctx: &mut Context) -> Option<Outcome> {
        // What is answered there cannot be undone.
        if ctx.dry_run {
            return None;
        }
        for at in &self.logins {
            let answered = match self.login(*at) {
                Some(login) => login.answer(request).await,
                None => None,
            };
            match answered {
                None => {}
                Some(Answered::Reply(reply)) => {
                    ctx.decide(Verdict::Changed, "the request is for the identity itself", &[]);
                    return Some(reply.into());
                }
                Some(Answered::WantsBody) => {
                    ctx.set_slot(self.asked, *at);
                    return Some(Outcome::Continue);
                }
            }
        }
        None
    }

    /// The answer to such a request when its body is there.
    pub(super) async fn for_login_body(
        &self,
        request: &RequestHeader,
        body: &[u8],
        ctx: &mut Context,
    ) -> Option<Outcome> {
        let login = self.login(*ctx.slot(self.asked)?)?;
        let reply = login.answer_body(request, body).await;
        ctx.decide(Verdict::Changed, "the request is for the identity itself", &[]);
        Some(reply.into())
    }

    /// Sends a browser that shows no credential at all to where its user can log in.
    pub(super) async fn invite(
        &self,
        refused: &Refused,
        request: &RequestHeader,
        ctx: &mut Context,
    ) -> Option<Outcome> {
        if self.logins.is_empty() || refused.refusals.iter().any(|(_, refusal)| refusal.is_some()) {
            return None;
        }
        let missing = self.logins.iter().find(|at| refused.refusals.iter().any(|(of, _)| of == *at));
        let reply = self.login(*missing?)?.invite(request, ctx).await?;
        ctx.decide(Verdict::Changed, "the user is sent to log in", &[]);
        Some(reply.into())
    }
}

/// Browsers are told of sessions that were renewed.
#[async_trait]
impl OnResponse for Authenticate {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        let Some(cookies) = ctx.slot(self.cookies) else { return Ok(()) };
        if !is_for_one(response) {
            response.append_header(CACHE_CONTROL, "private")?;
        }
        for cookie in cookies {
            response.append_header(SET_COOKIE, cookie.clone())?;
        }
        Ok(())
    }
}

/// Whether no cache that others share keeps the answer as it is (RFC 9111 s3).
fn is_for_one(response: &ResponseHeader) -> bool {
    let lines = response.headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    let is_one = |text: &str| ["private", "no-store"].iter().any(|one| text.eq_ignore_ascii_case(one));
    lines.flat_map(|line| line.split(',')).any(|directive| is_one(directive.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_get_too_is_told_from_what_is_for_one() {
        for (lines, expected) in [
            ("", false),
            ("public, max-age=60", false),
            ("max-age=60, no-cache", false),
            ("max-age=60, Private", true),
            ("max-age=60\nno-store", true),
            // A list of fields speaks of these alone.
            ("private=\"x-user\"", false),
        ] {
            let mut response = ResponseHeader::build(200, None).expect("valid");
            for line in lines.lines() {
                response.append_header(CACHE_CONTROL, line).expect("valid");
            }
            assert_eq!(is_for_one(&response), expected, "{lines}");
        }
    }
}
