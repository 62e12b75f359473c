//! Keys of session tickets (RFC 5077, RFC 8446 s4.6.1): they outlive reloads, and never let a client in
//! that would not be let in without them.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

/// Who may resume: a hash of what clients are asked for. A ticket stands for its client's certificate
/// without that being verified again, so tickets made under other terms must not be readable.
pub(super) type Scope = [u8; 32];

/// The scope where clients are asked for nothing.
pub(super) const ANYONE: Scope = [0; 32];

/// The keys of one scope. rustls changes them every six hours and reads tickets of the last two keys.
#[derive(Clone)]
pub(super) struct Tickets {
    scope: Scope,
    keys: Option<Arc<dyn ProducesTickets>>,
}

impl Tickets {
    /// The previous keys where clients are asked for the same, else new ones.
    pub(super) fn of(scope: Scope, previous: Option<&Self>) -> Self {
        match previous.filter(|previous| previous.scope == scope) {
            Some(previous) => previous.clone(),
            // Without random numbers there is no key exchange either; resumption is not what fails first.
            None => Self { scope, keys: Ticketer::new().ok() },
        }
    }

    /// What makes and reads tickets.
    pub(super) fn producer(&self) -> Arc<dyn ProducesTickets> {
        self.keys.clone().unwrap_or_else(|| Arc::new(NoTickets))
    }
}

/// Makes no tickets and reads none.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
