//! How the gateway shows an authorization server which client it is (RFC 6749 s2.3.1), and what forms are made of.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::Secret;

/// How a client shows what proves who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClientAuth {
    /// In `Authorization`.
    #[default]
    Basic,
    /// In the form.
    Post,
}

/// A client's id and what proves it, in the form that they are sent in.
pub(crate) enum Credentials {
    /// In a field.
    Field(HeaderValue),
    /// In a form.
    Form(String),
}

impl Credentials {
    /// Both are encoded as in forms, also in the field. A client without a secret only says who it is.
    pub(crate) fn new(id: &str, secret: Option<&Secret>, auth: ClientAuth) -> Self {
        let id = encoded(id);
        let Some(secret) = secret.map(|secret| encoded(secret.expose())) else {
            return Self::Form(format!("client_id={id}"));
        };
        match auth {
            ClientAuth::Post => Self::Form(format!("client_id={id}&client_secret={secret}")),
            ClientAuth::Basic => {
                let text = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
                let mut value = HeaderValue::try_from(text).expect("base64 is visible ASCII");
                value.set_sensitive(true);
                Self::Field(value)
            }
        }
    }

    /// The form with what goes in there.
    pub(crate) fn form(&self, form: String) -> String {
        match self {
            Self::Field(_) => form,
            Self::Form(credentials) => format!("{form}&{credentials}"),
        }
    }

    /// The fields that go beside the form.
    pub(crate) fn fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        match self {
            Self::Field(value) => vec![(AUTHORIZATION, value.clone())],
            Self::Form(_) => Vec::new(),
        }
    }
}

/// Pairs as in `application/x-www-form-urlencoded`.
pub fn form(pairs: &[(&str, &str)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

/// A value as in `application/x-www-form-urlencoded`.
fn encoded(text: &str) -> String {
    let mut form = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => {
                form.push(char::from(byte));
            }
            b' ' => form.push('+'),
            _ => form.push_str(&format!("%{byte:02X}")),
        }
    }
    form
}
