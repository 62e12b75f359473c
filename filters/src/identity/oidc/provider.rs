//! The provider of OpenID Connect: where its endpoints are, and what it gives for codes and refresh tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::options::Options;
use crate::filter::BuildError;
use crate::identity::client::{Credentials, form};
use crate::identity::remote::Remote;
use crate::identity::{Site, Unavailable};
use crate::values::{Scalar, Url};
use crate::world::Clock;

/// How long what its document says is gone by.
const KEEP: Duration = Duration::from_secs(3600);
/// After it could not be asked, how long nobody asks again.
const PAUSE: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(super) struct Provider {
    issuer: String,
    document: Remote,
    /// All calls go through an upstream of the document.
    confined: bool,
    credentials: Credentials,
    clock: Arc<dyn Clock>,
    /// One asks at a time; the others wait for what it learns.
    known: Mutex<Option<Known>>,
}

struct Known {
    said: Result<Arc<Endpoints>, String>,
    until: Instant,
}

/// What its document says (OpenID Connect Discovery 1.0 s3).
pub(super) struct Endpoints {
    /// Where browsers are sent to log in.
    pub(super) authorization: Url,
    token: Remote,
    /// Where browsers are sent to log out.
    pub(super) end_session: Option<Url>,
    /// Its answers say who gives them (RFC 9207).
    pub(super) names_itself: bool,
}

/// What it gives for a code or a refresh token.
pub(super) struct Tokens {
    pub(super) id: Option<String>,
    pub(super) refresh: Option<String>,
    /// How long the access token holds, in seconds.
    pub(super) expires_in: Option<u64>,
}

/// Why it gives nothing.
#[derive(Debug, Clone)]
pub(super) enum NoTokens {
    /// It refuses what was shown (RFC 6749 s5.2).
    Refused,
    /// It cannot be asked now.
    Away(Arc<str>),
}

impl Provider {
    pub(super) fn new(options: &Options, site: &Site<'_>) -> Result<Self, BuildError> {
        let issuer = &options.issuer;
        let via = site.via(options.upstream.as_deref())?;
        let path =
            format!("{}/.well-known/openid-configuration", issuer.target().path().trim_end_matches('/'));
        let document = issuer.with_path(&path).filter(|_| issuer.target().query().is_none());
        let document = document.ok_or_else(|| BuildError::at("issuer", "expected a URL without a query"))?;
        let remote = site.remote("issuer", issuer, via, options.timeout.get())?;
        Ok(Self {
            issuer: issuer.as_str().to_owned(),
            document: remote.beside(&document),
            confined: via.is_some(),
            credentials: Credentials::new(
                &options.client_id,
                options.client_secret.as_ref(),
                options.client_auth,
            ),
            clock: site.world.clock.clone(),
            known: Mutex::default(),
        })
    }

    /// Where everything is.
    pub(super) async fn endpoints(&self) -> Result<Arc<Endpoints>, Unavailable> {
        let mut known = self.known.lock().await;
        let now = self.clock.now();
        let said = match &*known {
            Some(Known { said, until }) if now < *until => said.clone(),
            _ => {
                let asked = self.ask().await;
                if let Err(why) = &asked {
                    log::warn!(issuer = self.issuer.as_str(), error = why.as_str(); "cannot ask a provider where it is");
                }
                let keep = if asked.is_ok() { KEEP } else { PAUSE };
                // Until it can be asked again, it is where it was.
                let before = known.take().and_then(|known| known.said.ok());
                let said = asked.or_else(|why| before.ok_or(why));
                let until = self.clock.now() + keep;
                *known = Some(Known { said: said.clone(), until });
                said
            }
        };
        said.map_err(|why| away(&why))
    }

    async fn ask(&self) -> Result<Arc<Endpoints>, String> {
        let object = self.document.get().await.and_then(|answer| answer.object());
        let said = object.and_then(|document| self.read(&document));
        said.map(Arc::new).map_err(|why| format!("{}: {why}", self.document.url()))
    }

    fn read(&self, document: &Map<String, Value>) -> Result<Endpoints, String> {
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        if text("issuer") != Some(&self.issuer) {
            return Err("the document is of another `issuer`".to_owned());
        }
        let url = |name: &str| {
            let url = text(name)
                .and_then(Url::read)
                .ok_or_else(|| format!("the document has no usable `{name}`"))?;
            match self.document.url().is_https() && !url.is_https() {
                true => Err(format!("the `{name}` of the document is not https")),
                false => Ok(url),
            }
        };
        let token = url("token_endpoint")?;
        if self.confined && token.origin() != self.document.url().origin() {
            return Err("the `token_endpoint` of the document is on another host".to_owned());
        }
        Ok(Endpoints {
            authorization: url("authorization_endpoint")?,
            token: self.document.beside(&token),
            end_session: text("end_session_endpoint").map(|_| url("end_session_endpoint")).transpose()?,
            names_itself: document.get("authorization_response_iss_parameter_supported")
                == Some(&Value::Bool(true)),
        })
    }

    /// What it gives for this (RFC 6749 s4.1.3 and s6).
    pub(super) async fn tokens(&self, pairs: &[(&str, &str)]) -> Result<Tokens, NoTokens> {
        let failed = |why: String| {
            log::warn!(issuer = self.issuer.as_str(), error = why.as_str(); "cannot get tokens of a provider");
            NoTokens::Away(why.into())
        };
        let endpoints = self.endpoints().await.map_err(|why| NoTokens::Away(why.reason.as_ref().into()))?;
        let answer =
            endpoints.token.post(self.credentials.form(form(pairs)), self.credentials.fields()).await;
        let answer = answer.map_err(failed)?;
        if let Some(code) = answer.refusal() {
            // Not the user's fault.
            if ["invalid_client", "unauthorized_client", "unsupported_grant_type"].contains(&code.as_str()) {
                return Err(failed(format!("it refuses this client: {code}")));
            }
            return Err(NoTokens::Refused);
        }
        let object = answer.object().map_err(failed)?;
        let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
        let expires_in = object.get("expires_in").and_then(Value::as_u64);
        Ok(Tokens { id: text("id_token"), refresh: text("refresh_token"), expires_in })
    }
}

/// It cannot be asked now.
pub(super) fn away(why: &str) -> Unavailable {
    Unavailable { reason: format!("the provider cannot be asked: {why}").into(), retry_after: 1 }
}
