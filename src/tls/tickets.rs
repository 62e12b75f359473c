//! Keys of session tickets (RFC 5077, RFC 8446 s4.6.1): they outlive reloads and upgrades, and never let a
//! client in that would not be let in without them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use parking_lot::RwLock;
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Who may resume: a hash of what clients are asked for. A ticket stands for its client's certificate
/// without that being verified again, so tickets made under other terms must not be readable.
pub(super) type Scope = [u8; 32];

/// The scope where clients are asked for nothing.
pub(super) const ANYONE: Scope = [0; 32];

/// How long a key makes tickets.
const ROTATION: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a ticket is good; its key is kept as long.
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// A ticket begins with its key's name (RFC 5077 s4).
const NAME_LEN: usize = 16;

/// The keys of one scope.
#[derive(Clone)]
pub(super) struct Tickets {
    scope: Scope,
    ring: Option<Arc<Ring>>,
}

/// Keys on their way to another process.
#[derive(Serialize, Deserialize)]
pub struct TicketKeys {
    scope: Scope,
    keys: Vec<Key>,
}

impl Tickets {
    /// The previous keys where clients are asked for the same, else new ones.
    pub(super) fn of(scope: Scope, previous: Option<&Self>) -> Self {
        match previous.filter(|previous| previous.scope == scope) {
            Some(previous) => previous.clone(),
            // Without random numbers there is no key exchange either; resumption is not what fails first.
            None => Self { scope, ring: Ring::new(SystemTime::now()).map(Arc::new) },
        }
    }

    /// What makes and reads tickets.
    pub(super) fn producer(&self) -> Arc<dyn ProducesTickets> {
        match &self.ring {
            Some(ring) => ring.clone(),
            None => Arc::new(NoTickets),
        }
    }

    pub(super) fn export(&self) -> TicketKeys {
        let keys = self.ring.as_ref().map(|ring| ring.0.read().clone());
        TicketKeys { scope: self.scope, keys: keys.unwrap_or_default() }
    }

    /// Goes on with the keys of the process before this one, where clients were asked for the same.
    pub(super) fn import(&self, keys: TicketKeys) {
        if let Some(ring) = self.ring.as_ref().filter(|_| keys.scope == self.scope && !keys.keys.is_empty()) {
            *ring.0.write() = keys.keys;
        }
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

/// The newest key makes tickets, and all of them read; the newest is the last.
struct Ring(RwLock<Vec<Key>>);

#[derive(Clone, Serialize, Deserialize)]
struct Key {
    name: [u8; NAME_LEN],
    secret: Zeroizing<[u8; 32]>,
    made: SystemTime,
}

impl Key {
    fn new(made: SystemTime) -> Option<Self> {
        let (mut name, mut secret) = ([0; NAME_LEN], Zeroizing::new([0; 32]));
        aws_lc_rs::rand::fill(&mut name).ok()?;
        aws_lc_rs::rand::fill(&mut *secret).ok()?;
        Some(Self { name, secret, made })
    }

    fn is_younger(&self, age: Duration, now: SystemTime) -> bool {
        // A clock that was set back makes no key old.
        now.duration_since(self.made).unwrap_or_default() < age
    }

    /// Whether it makes tickets: for its time, and not for longer since the clock was far ahead when it was made.
    fn makes(&self, now: SystemTime) -> bool {
        self.is_younger(ROTATION, now) && self.made <= now + ROTATION
    }

    fn cipher(&self) -> Option<RandomizedNonceKey> {
        RandomizedNonceKey::new(&AES_256_GCM, &*self.secret).ok()
    }

    /// The name, the nonce, and what is sealed: the name is bound to it.
    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let nonce = self.cipher()?.seal_in_place_append_tag(Aad::from(self.name), &mut sealed).ok()?;
        Some([&self.name[..], nonce.as_ref(), &sealed].concat())
    }

    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = sealed.to_vec();
        let length = self.cipher()?.open_in_place(nonce, Aad::from(self.name), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl Ring {
    fn new(now: SystemTime) -> Option<Self> {
        Some(Self(RwLock::new(vec![Key::new(now)?])))
    }

    fn encrypt_at(&self, plain: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        if let Some(key) = self.0.read().last().filter(|key| key.makes(now)) {
            return key.seal(plain);
        }
        let mut keys = self.0.write();
        // Another thread may have been here first.
        if !keys.last().is_some_and(|key| key.makes(now)) {
            keys.push(Key::new(now)?);
            // Those of a time that is still to come age from now on.
            keys.iter_mut().for_each(|key| key.made = key.made.min(now));
            keys.retain(|key| key.is_younger(ROTATION + LIFETIME, now));
        }
        keys.last()?.seal(plain)
    }

    fn decrypt_at(&self, ticket: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        let (name, sealed) = ticket.split_at_checked(NAME_LEN)?;
        let keys = self.0.read();
        let key = keys.iter().find(|key| key.name == name)?;
        key.is_younger(ROTATION + LIFETIME, now).then(|| key.open(sealed))?
    }
}

impl ProducesTickets for Ring {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME.as_secs()).expect("half a day")
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(plain, SystemTime::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(ticket, SystemTime::now())
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn ring(now: SystemTime) -> Ring {
        Ring::new(now).expect("random numbers")
    }

    #[test]
    fn a_ticket_is_read_by_the_keys_it_was_made_with_and_by_no_others() {
        let now = SystemTime::now();
        let (one, other) = (ring(now), ring(now));
        let ticket = one.encrypt_at(b"session", now).unwrap();
        assert_eq!(one.decrypt_at(&ticket, now).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.decrypt_at(&ticket, now), None);
        assert_ne!(one.encrypt_at(b"session", now).unwrap(), ticket, "no two are alike");
    }

    #[test]
    fn a_ticket_that_was_touched_is_no_ticket() {
        let now = SystemTime::now();
        let ring = ring(now);
        let ticket = ring.encrypt_at(b"session", now).unwrap();
        for at in 0..ticket.len() {
            let mut touched = ticket.clone();
            touched[at] ^= 1;
            assert_eq!(ring.decrypt_at(&touched, now), None, "byte {at}");
            assert_eq!(ring.decrypt_at(&ticket[..at], now), None, "{at} bytes");
        }
    }

    #[test]
    fn keys_change_every_six_hours_and_are_forgotten_when_their_tickets_are_over() {
        let now = SystemTime::now();
        let ring = ring(now);
        let first = ring.encrypt_at(b"a", now).unwrap();
        let second = ring.encrypt_at(b"b", now + 6 * HOUR).unwrap();
        assert_ne!(first[..NAME_LEN], second[..NAME_LEN]);
        assert!(ring.decrypt_at(&first, now + 17 * HOUR).is_some());
        assert!(ring.decrypt_at(&first, now + 18 * HOUR).is_none(), "also where nothing made a new key");
        ring.encrypt_at(b"c", now + 12 * HOUR).unwrap();
        ring.encrypt_at(b"d", now + 18 * HOUR).unwrap();
        assert_eq!(ring.0.read().len(), 3, "18 hours' worth of keys");
    }

    #[test]
    fn a_key_that_was_made_while_the_clock_was_ahead_changes_and_is_forgotten_like_others() {
        let now = SystemTime::now();
        let ring = ring(now + 365 * 24 * HOUR);
        let ahead = ring.encrypt_at(b"a", now + 365 * 24 * HOUR).unwrap();
        let first = ring.encrypt_at(b"b", now).unwrap();
        let second = ring.encrypt_at(b"c", now + 7 * HOUR).unwrap();
        assert_ne!(ahead[..NAME_LEN], first[..NAME_LEN]);
        assert_ne!(first[..NAME_LEN], second[..NAME_LEN]);
        assert!(ring.decrypt_at(&ahead, now + 17 * HOUR).is_some());
        assert!(ring.decrypt_at(&ahead, now + 18 * HOUR).is_none());
    }

    #[test]
    fn a_clock_that_is_set_back_a_little_makes_no_new_key() {
        let now = SystemTime::now();
        let ring = ring(now);
        let first = ring.encrypt_at(b"a", now).unwrap();
        let second = ring.encrypt_at(b"b", now - HOUR).unwrap();
        assert_eq!(first[..NAME_LEN], second[..NAME_LEN]);
    }

    #[test]
    fn another_process_reads_the_tickets_of_this_one_if_it_asks_clients_for_the_same() {
        let handed_over = |keys: &Tickets| {
            let json = serde_json::to_string(&keys.export()).unwrap();
            serde_json::from_str::<TicketKeys>(&json).unwrap()
        };
        let old = Tickets::of(ANYONE, None);
        let ticket = old.producer().encrypt(b"session").unwrap();
        let (same, stricter) = (Tickets::of(ANYONE, None), Tickets::of([1; 32], None));
        same.import(handed_over(&old));
        stricter.import(handed_over(&old));
        assert_eq!(same.producer().decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(stricter.producer().decrypt(&ticket), None);
        assert!(!format!("{:?}", old.export()).contains("secret"));
    }
}
