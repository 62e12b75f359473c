//! How a client shows an authorization server who it is (RFC 6749 s2.3.1).

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

/// A client's id and secret, in the form that they are sent in.
pub(crate) enum Credentials {
    Field(HeaderValue),
    Form(String),
}

impl Credentials {
    /// Both are encoded as in forms, also in the field.
    pub(crate) fn new(id: &str, secret: &Secret, auth: ClientAuth) -> Self {
        let (id, secret) = (encoded(id), encoded(secret.expose()));
        match auth {
            ClientAuth::Post => Self::Form(format!("&client_id={id}&client_secret={secret}")),
            ClientAuth::Basic => {
                let text = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
                let mut value = HeaderValue::try_from(text).expect("base64 is visible ASCII");
                value.set_sensitive(true);
                Self::Field(value)
            }
        }
    }

    /// Adds them to a form, or gives the field that has them.
    pub(crate) fn add_to(&self, form: &mut String) -> Vec<(HeaderName, HeaderValue)> {
        match self {
            Self::Field(value) => vec![(AUTHORIZATION, value.clone())],
            Self::Form(credentials) => {
                form.push_str(credentials);
                Vec::new()
            }
        }
    }
}

/// A value as in `application/x-www-form-urlencoded`.
pub(crate) fn encoded(text: &str) -> String {
    let mut form = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => {
                form.push(char::from(byte))
            }
            b' ' => form.push('+'),
            _ => form.push_str(&format!("%{byte:02X}")),
        }
    }
    form
}
