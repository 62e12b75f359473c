//! The end of sessions: by their users (OpenID Connect RP-Initiated Logout 1.0), and by the provider (OpenID Connect
//! Back-Channel Logout 1.0).

use std::time::Duration;

use http::Method;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, SET_COOKIE};
use pingora_http::{RequestHeader, ResponseHeader};
use serde_json::Value;

use super::Party;
use super::login::{later, redirect};
use super::session::{REMEMBER, Session, their_id};
use crate::condition::query_values;
use crate::identity::client::form;
use crate::identity::{Failure, Unavailable};
use crate::outcome::Reply;
use crate::problem::{BAD_REQUEST, INTERNAL, METHOD_NOT_ALLOWED, Problem};
use crate::world::Revoked;

/// What a token has to be about (Back-Channel Logout s2.4).
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

impl Party {
    /// Ends the session of this browser, and sends it on to the provider, who ends its own.
    pub(super) async fn log_out(&self, request: &RequestHeader) -> Result<Reply, Problem> {
        if ![Method::GET, Method::POST].contains(&request.method) {
            return Err(Problem::new(&METHOD_NOT_ALLOWED)
                .header(http::header::ALLOW, "GET, POST".parse().expect("text")));
        }
        let session = self.session(request).await.map_err(later)?;
        if let Some(session) = &session {
            self.end_one(session).await.map_err(later)?;
        }
        let cookies = self.jar.drop(request);
        // Without the provider the user is logged out here at least.
        let end_session = self.provider.endpoints().await.ok().and_then(|known| known.end_session.clone());
        let back = self.options.post_logout_redirect_uri.as_ref();
        let Some(place) = end_session else {
            return match back {
                Some(back) => redirect(back.as_str(), cookies),
                None => logged_out(cookies),
            };
        };
        let mut pairs = vec![("client_id", self.options.client_id.as_str())];
        pairs.extend(session.as_ref().map(|session: &Session| ("id_token_hint", session.token.as_str())));
        pairs.extend(back.map(|back| ("post_logout_redirect_uri", back.as_str())));
        let join = if place.as_str().contains('?') { '&' } else { '?' };
        redirect(&format!("{place}{join}{}", form(&pairs)), cookies)
    }

    /// What the provider says in the background.
    pub(super) async fn end_sessions(&self, request: &RequestHeader, body: &[u8]) -> Result<Reply, Problem> {
        let wrong = |reason: &'static str| {
            let problem = Problem::new(&BAD_REQUEST).detail("the logout token does not hold").reason(reason);
            problem.header(CACHE_CONTROL, "no-store".parse().expect("text"))
        };
        let is_form =
            request.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(|kind| {
                let kind = kind.split(';').next().unwrap_or_default().trim();
                kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
            });
        let body =
            std::str::from_utf8(body).ok().filter(|_| is_form).ok_or_else(|| wrong("there is no form"))?;
        let mut tokens = query_values(body, "logout_token");
        let (Some(token), None) = (tokens.next(), tokens.next()) else {
            return Err(wrong("the form has not one logout token"));
        };
        let claims = self.verify_any(&token, self.clock.wall()).await.map_err(|failure| match failure {
            Failure::Refused(refusal) => wrong(refusal.reason),
            Failure::Unknown(why) => later(why),
        })?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        // s2.6: a token of a login is none of a logout, and the other way round.
        let is_logout =
            claims.get("events").and_then(|events| events.get(EVENT)).is_some_and(Value::is_object);
        let issued = claims.get("iat").and_then(Value::as_u64);
        let (true, false, Some(_), Some(issued)) =
            (is_logout, claims.contains_key("nonce"), text("jti"), issued)
        else {
            return Err(wrong("the token is not about a logout"));
        };
        self.end_kept(text("sid"), text("sub")).await.map_err(later)?;
        let (which, issued_before) = match (text("sid"), text("sub")) {
            (Some(sid), _) => (Revoked::Jti(their_id(sid).into()), None),
            // Who logs in again has a session of a later second, by this clock.
            (None, Some(subject)) => {
                (Revoked::Sub(subject.into()), Some(issued.min(self.now()).saturating_add(1)))
            }
            (None, None) => return Err(wrong("the token names neither a session nor a user")),
        };
        self.note_end(which, issued_before).map_err(later)?;
        done(200, Vec::new(), "")
    }

    /// Notes that the provider ended sessions.
    fn note_end(&self, which: Revoked, issued_before: Option<u64>) -> Result<(), Unavailable> {
        let until = |lasts: Duration| self.now().saturating_add(lasts.as_secs());
        if self.shelf.is_none() {
            return self.revoke(which, issued_before, until(self.options.session.get()));
        }
        // Sessions of a store are gone from there: this is for what is under way, and no logout fails for it.
        if let Err(why) = self.revoke(which, issued_before, until(REMEMBER)) {
            log::warn!(identity = &*self.name, error = &*why.reason; "requests under way may go on with sessions that have ended");
        }
        Ok(())
    }
}

fn logged_out(cookies: Vec<http::HeaderValue>) -> Result<Reply, Problem> {
    done(200, cookies, "You are logged out.\n")
}

fn done(status: u16, cookies: Vec<http::HeaderValue>, text: &'static str) -> Result<Reply, Problem> {
    let head = || -> Result<ResponseHeader, Box<pingora_error::Error>> {
        let mut head = ResponseHeader::build(status, Some(cookies.len() + 2))?;
        head.insert_header(CACHE_CONTROL, "no-store")?;
        if !text.is_empty() {
            head.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8")?;
        }
        cookies.into_iter().try_for_each(|cookie| head.append_header(SET_COOKIE, cookie).map(drop))?;
        Ok(head)
    };
    head()
        .map(|head| Reply::message(head, text))
        .map_err(|error| Problem::new(&INTERNAL).reason(error.to_string()))
}
