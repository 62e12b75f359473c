//! Clients that stay with their backend, by a signed cookie.

use std::sync::Arc;

use aws_lc_rs::hmac;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use tollhouse_filters::condition::cookie_values;
use tollhouse_filters::values::hex;

use crate::config::balance::{SameSite, Sticky as Written};
use crate::config::upstream::Address;

/// Cookies of an upstream's backends. There is one for each backend, so that a valid one is one of these.
#[derive(Debug)]
pub(super) struct Sticky {
    name: String,
    /// What follows the value.
    attributes: String,
    upstream: Arc<str>,
    key: hmac::Key,
}

impl Sticky {
    /// Cookies for backends of this upstream.
    pub(super) fn new(written: &Written, upstream: &Arc<str>) -> Self {
        Self {
            name: written.cookie.clone(),
            attributes: attributes(written),
            upstream: Arc::clone(upstream),
            key: hmac::Key::new(hmac::HMAC_SHA256, written.secret.expose().as_bytes()),
        }
    }

    /// The value of the cookie for a backend at this address.
    pub(super) fn value(&self, address: &Address) -> String {
        // Not the address itself, which is nobody's business.
        let id: [u8; 32] = Sha256::digest(address.to_string().as_bytes()).into();
        let id = hex(&id[..8]);
        let signature = hmac::sign(&self.key, format!("{}\0{id}", self.upstream).as_bytes());
        format!("{id}.{}", hex(&signature.as_ref()[..16]))
    }

    /// What the request's cookie is for, by who knows the values that are valid.
    pub(super) fn find<T>(&self, headers: &HeaderMap, by_value: impl Fn(&str) -> Option<T>) -> Option<T> {
        cookie_values(headers, &self.name).find_map(|value| by_value(&value))
    }

    /// `Set-Cookie` for the backend at this address, for a client that came over TLS or not.
    pub(super) fn set(&self, address: &Address, tls: bool) -> Option<HeaderValue> {
        let secure = if tls { "; Secure" } else { "" };
        let text = format!("{}={}{}{secure}", self.name, self.value(address), self.attributes);
        HeaderValue::from_str(&text).ok()
    }
}

fn attributes(written: &Written) -> String {
    let same_site = match written.same_site {
        SameSite::Strict => "Strict",
        SameSite::Lax => "Lax",
        SameSite::None => "None",
    };
    let max_age = written.max_age.map(|age| format!("; Max-Age={}", age.get().as_secs())).unwrap_or_default();
    format!("; Path=/; HttpOnly; SameSite={same_site}{max_age}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sticky(secret: &str, upstream: &str) -> Sticky {
        let written = json!({"cookie": "lb", "secret": secret, "max_age": "1h"});
        Sticky::new(&serde_json::from_value(written).unwrap(), &upstream.into())
    }

    fn address(backend: usize) -> Address {
        ["a.test:1", "b.test:1"][backend].parse().unwrap()
    }

    /// The backend that a cookie is for.
    fn found(sticky: &Sticky, headers: &HeaderMap) -> Option<usize> {
        sticky.find(headers, |value| [0, 1].into_iter().find(|at| sticky.value(&address(*at)) == value))
    }

    fn with(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::COOKIE, cookie.parse().unwrap())])
    }

    #[test]
    fn the_cookie_that_was_set_leads_back_to_its_backend() {
        let sticky = sticky("s3cret", "u");
        for backend in [0, 1] {
            let set = sticky.set(&address(backend), false).unwrap();
            let (cookie, attributes) = set.to_str().unwrap().split_once("; ").unwrap();
            assert_eq!(found(&sticky, &with(&format!("x=1; {cookie}"))), Some(backend));
            assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Max-Age=3600");
        }
        assert!(sticky.set(&address(0), true).unwrap().to_str().unwrap().ends_with("; Secure"));
    }

    #[test]
    fn a_cookie_of_another_secret_or_upstream_is_as_none() {
        let set = |sticky: &Sticky| sticky.set(&address(1), false).unwrap().to_str().unwrap().to_owned();
        let ours = sticky("s3cret", "u");
        let cookie = |text: String| text.split(';').next().unwrap().to_owned();
        for other in [set(&sticky("other", "u")), set(&sticky("s3cret", "v"))] {
            assert_eq!(found(&ours, &with(&cookie(other))), None);
        }
        assert_eq!(found(&ours, &with("lb=0123456789abcdef.00")), None);
        assert_eq!(found(&ours, &with("lb=")), None);
    }

    #[test]
    fn no_address_is_in_a_cookie() {
        assert!(!sticky("s", "u").set(&address(0), false).unwrap().to_str().unwrap().contains("a.test"));
    }
}
