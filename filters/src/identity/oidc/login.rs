//! Login by authorization code with PKCE (OpenID Connect Core 1.0 s3.1, RFC 7636), by the advice of RFC 9700.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{ACCEPT, CACHE_CONTROL, LOCATION, REFERRER_POLICY, SET_COOKIE};
use http::{HeaderValue, Method};
use pingora_http::{RequestHeader, ResponseHeader};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::provider::NoTokens;
use super::session::Session;
use super::{Party, random};
use crate::condition::query_values;
use crate::context::Context;
use crate::identity::client::form;
use crate::identity::{Failure, Refusal, Unavailable};
use crate::outcome::Reply;
use crate::problem::{BAD_REQUEST, FILTER_UNAVAILABLE, FORBIDDEN, INTERNAL, Problem};

/// How long a user has to log in, in seconds.
const PATIENCE: u64 = 600;
/// The longest place to come back to, in bytes.
const LONGEST: usize = 1024;

/// A login that was begun, as its cookie holds it.
#[derive(Debug, Serialize, Deserialize)]
struct Attempt {
    /// Binds the answer to this browser (RFC 6749 s10.12).
    #[serde(rename = "s")]
    state: String,
    /// Binds the token to it.
    #[serde(rename = "n")]
    nonce: String,
    /// Binds the code to it (RFC 7636).
    #[serde(rename = "v")]
    verifier: String,
    /// Where the user wanted to go: a path of ours.
    #[serde(rename = "b")]
    back: String,
    /// When it is too late, in Unix seconds.
    #[serde(rename = "u")]
    until: u64,
}

/// Whether a request is a browser's that goes to a page, rather than a script's or a program's.
pub(super) fn is_navigation(request: &RequestHeader) -> bool {
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let takes_pages =
        request.headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).any(|line| {
            line.split(',').any(|range| {
                range.split(';').next().is_some_and(|range| range.trim().eq_ignore_ascii_case("text/html"))
            })
        });
    let is_script = text("x-requested-with").is_some_and(|by| by.eq_ignore_ascii_case("xmlhttprequest"))
        || text("sec-fetch-mode").is_some_and(|mode| mode != "navigate");
    [Method::GET, Method::HEAD].contains(&request.method) && takes_pages && !is_script
}

/// A place to come back to: of this site only, whatever a browser makes of it.
fn place(request: &RequestHeader, ctx: &Context) -> String {
    let target = ctx.whole_target(request);
    let leaves = !target.starts_with('/') || target.starts_with("//") || target.contains('\\');
    let is_plain = target.len() <= LONGEST && target.bytes().all(|byte| byte.is_ascii_graphic());
    if leaves || !is_plain { "/".to_owned() } else { target }
}

/// Sends a browser somewhere else, with these cookies; nobody keeps the answer.
pub(super) fn redirect(location: &str, cookies: Vec<HeaderValue>) -> Result<Reply, Problem> {
    let head = || -> Result<ResponseHeader, Box<pingora_error::Error>> {
        let mut head = ResponseHeader::build(302, Some(cookies.len() + 3))?;
        head.insert_header(LOCATION, location)?;
        head.insert_header(CACHE_CONTROL, "no-store")?;
        // The address that is left may hold a code.
        head.insert_header(REFERRER_POLICY, "no-referrer")?;
        cookies.into_iter().try_for_each(|cookie| head.append_header(SET_COOKIE, cookie).map(drop))?;
        Ok(head)
    };
    head()
        .map(|head| Reply::message(head, ""))
        .map_err(|error| Problem::new(&INTERNAL).reason(error.to_string()))
}

/// The one value of a parameter; several are an error.
fn only(query: &str, name: &'static str) -> Result<Option<String>, Problem> {
    let mut values = query_values(query, name);
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(|value| value.into_owned())),
        _ => Err(wrong("a parameter of the answer stands several times")),
    }
}

fn wrong(detail: &'static str) -> Problem {
    Problem::new(&BAD_REQUEST).detail(detail)
}

/// Nobody can tell now.
pub(super) fn later(why: Unavailable) -> Problem {
    let mut problem = Problem::new(&FILTER_UNAVAILABLE).reason(why.reason);
    problem.retry_after = Some(why.retry_after);
    problem
}

/// In a time that says nothing of where two texts differ.
fn is_same(one: &str, other: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

impl Party {
    /// Sends a browser to the provider.
    pub(super) async fn begin(&self, request: &RequestHeader, ctx: &Context) -> Result<Reply, Problem> {
        let endpoints = self.provider.endpoints().await.map_err(later)?;
        let chance = || random().ok_or_else(|| Problem::new(&INTERNAL).reason("there is no randomness"));
        let (state, nonce, verifier) = (chance()?, chance()?, chance()?);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&verifier));
        let query = form(&[
            ("response_type", "code"),
            ("client_id", &self.options.client_id),
            ("redirect_uri", self.options.redirect_uri.as_str()),
            ("scope", &self.options.scope()),
            ("state", &state),
            ("nonce", &nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]);
        let until = self.now().saturating_add(PATIENCE);
        let attempt = Attempt { state, nonce, verifier, back: place(request, ctx), until };
        let plain = serde_json::to_vec(&attempt).unwrap_or_default();
        let cookie = self.jar.begin(request, &plain, PATIENCE);
        let cookie = cookie.ok_or_else(|| Problem::new(&INTERNAL).reason("a cookie cannot be sealed"))?;
        let place = endpoints.authorization.as_str();
        redirect(&format!("{place}{}{query}", if place.contains('?') { '&' } else { '?' }), vec![cookie])
    }

    /// A browser that comes back (OpenID Connect Core 1.0 s3.1.2.5).
    pub(super) async fn finish(&self, request: &RequestHeader) -> Result<Reply, Problem> {
        if request.method != Method::GET {
            return Err(wrong("an answer of the provider comes by GET"));
        }
        let query = request.uri.query().unwrap_or_default();
        let (state, code, error) = (only(query, "state")?, only(query, "code")?, only(query, "error")?);
        let issuer = only(query, "iss")?;
        let state = state.ok_or_else(|| wrong("the answer has no state"))?;
        let found = self.attempt(request, &state);
        // Another page of this browser was faster.
        if found.is_err() && self.is_logged_in(request).await {
            return redirect("/", Vec::new());
        }
        let (at, attempt) = found?;
        let endpoints = self.provider.endpoints().await.map_err(later)?;
        // RFC 9207 s2.4: or a code of one provider could be shown to another.
        let is_theirs =
            issuer.as_deref().map_or(!endpoints.names_itself, |name| name == self.options.issuer.as_str());
        if !is_theirs {
            return Err(wrong("the answer is of another provider"));
        }
        if let Some(error) = error {
            return Err(refused(&error));
        }
        let code = code.ok_or_else(|| wrong("the answer has neither a code nor an error"))?;
        let session = self.exchange(&code, &attempt).await?;
        // With its cookies the browser would be sent to log in again, and again.
        if self.was_ended(&session) {
            return Err(Problem::new(&FORBIDDEN).detail("the sessions of this user were ended"));
        }
        let cookies = self.keep(request, &session).await.map_err(later)?;
        let too_large = "what the provider says of the user does not fit into cookies";
        let mut cookies = cookies.ok_or_else(|| Problem::new(&INTERNAL).detail(too_large))?;
        cookies.push(self.jar.end(at));
        redirect(&attempt.back, cookies)
    }

    /// Whether the user of a browser has logged in with it.
    async fn is_logged_in(&self, request: &RequestHeader) -> bool {
        let session = self.session(request).await.ok().flatten();
        session.is_some_and(|session| self.may_hold(&session, self.now()))
    }

    /// The login of this browser that an answer is for, and where it is kept.
    fn attempt(&self, request: &RequestHeader, state: &str) -> Result<(usize, Attempt), Problem> {
        let logins = self.jar.logins(request);
        let mut attempts =
            logins.filter_map(|(at, plain)| Some((at, serde_json::from_slice::<Attempt>(&plain).ok()?)));
        let found = attempts.find(|(_, attempt)| is_same(&attempt.state, state));
        match found {
            Some((_, attempt)) if self.now() >= attempt.until => {
                Err(wrong("the login took too long; begin again"))
            }
            Some(found) => Ok(found),
            None => Err(wrong("the login was not begun in this browser, or is over; begin again")),
        }
    }

    /// A session for a code.
    async fn exchange(&self, code: &str, attempt: &Attempt) -> Result<Session, Problem> {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", self.options.redirect_uri.as_str()),
            ("code_verifier", &attempt.verifier),
        ];
        let mut tokens = self.provider.tokens(&pairs).await.map_err(|why| match why {
            NoTokens::Refused => wrong("the provider does not take the code; begin again"),
            NoTokens::Away(why) => later(super::provider::away(&why)),
        })?;
        let token = tokens.id.take().ok_or_else(|| bad_token("the provider gave no token of who it is"))?;
        let claims = self.verify(&token, self.clock.wall()).await.map_err(|failure| match failure {
            Failure::Refused(refusal) => bad_token(refusal.reason),
            Failure::Unknown(why) => later(why),
        })?;
        if claims.get("nonce").and_then(Value::as_str).is_none_or(|nonce| !is_same(nonce, &attempt.nonce)) {
            return Err(bad_token("the token is for another login"));
        }
        let session = Session::new(token, &tokens, self.now());
        session.ok_or_else(|| Problem::new(&INTERNAL).reason("there is no randomness"))
    }
}

/// What a token of the provider itself has to be, and is not.
fn bad_token(reason: &'static str) -> Problem {
    wrong("the provider's token does not hold; begin again").reason(reason)
}

/// The provider's refusal (RFC 6749 s4.1.2.1).
fn refused(error: &str) -> Problem {
    match error {
        "access_denied" => Problem::new(&FORBIDDEN).detail("the login was denied"),
        "temporarily_unavailable" | "server_error" => {
            later(Unavailable { reason: "the provider cannot log users in now".into(), retry_after: 1 })
        }
        _ => {
            let is_plain =
                error.len() <= 64 && error.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let code = if is_plain { error } else { "an unknown error" };
            wrong("the provider did not log the user in; begin again")
                .reason(format!("the provider answered {code}"))
        }
    }
}

impl Failure {
    /// Why, for the log.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Refused(Refusal { reason, .. }) => reason,
            Self::Unknown(why) => &why.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;

    #[test]
    fn a_user_comes_back_to_what_was_asked_for_with_its_version_and_to_no_other_site() {
        let long = format!("/{}", "x".repeat(LONGEST));
        for (target, whole, back) in [
            ("/a?b=%2F", None, "/a?b=%2F"),
            ("/a?b=1", Some("/v2/a"), "/v2/a?b=1"),
            ("/a", Some("/v2/a"), "/v2/a"),
            ("//evil.test", None, "/"),
            ("/a?b=\\", None, "/"),
            (&long, None, "/"),
        ] {
            let (request, mut ctx) = request("GET", target);
            ctx.whole_path = whole.map(Box::from);
            assert_eq!(place(&request, &ctx), back, "{target}");
        }
    }
}
