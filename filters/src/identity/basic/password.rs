//! Passwords as their hashes, which are slow to make on purpose.

use std::fmt;
use std::sync::Arc;

use argon2::password_hash::PasswordVerifier;
use argon2::{ARGON2ID_IDENT, Argon2, Params, PasswordHash as Parsed};

/// The hash of a password by Argon2id, in the form of PHC strings: with its salt, and what it costs to make.
///
/// Neither printed nor shown: weak passwords could be guessed from it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Arc<str>);

/// The most memory that a hash may take, in KiB: as much is held for each one that is made.
const MOST_MEMORY: u32 = 256 * 1024;
/// The most that memory, in KiB, times passes may be: several seconds of one core.
const MOST_WORK: u64 = 2 * 1024 * 1024;

impl PasswordHash {
    /// Reads the written form; none of other algorithms, and of hashes that take too much of the machine.
    pub(in crate::identity) fn read(text: &str) -> Option<Self> {
        let parsed = Parsed::new(text).ok()?;
        let params = Params::try_from(&parsed).ok()?;
        let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
        let is_whole = parsed.algorithm == ARGON2ID_IDENT
            && parsed.version.is_none_or(|version| version == 19)
            && parsed.salt.is_some()
            && parsed.hash.is_some_and(|hash| hash.len() >= 16);
        (is_whole && params.m_cost() <= MOST_MEMORY && work <= MOST_WORK).then(|| Self(text.into()))
    }

    /// The written form.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Whether it is the hash of this password. Takes tens of milliseconds.
    pub(super) fn is_of(&self, password: &[u8]) -> bool {
        Parsed::new(&self.0).is_ok_and(|parsed| Argon2::default().verify_password(password, &parsed).is_ok())
    }

    /// The hash of nobody's password, by what OWASP recommends.
    pub(super) fn of_nobody() -> Self {
        let text = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5J3Mgc2FsdA$\
                    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        Self(text.into())
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `password`, from `test.c` of the reference implementation (phc-winner-argon2).
    const KNOWN: &str =
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

    #[test]
    fn the_reference_implementations_hash_is_verified() {
        let hash = PasswordHash::read(KNOWN).expect("a hash");
        assert!(hash.is_of(b"password"));
        assert!(!hash.is_of(b"Password") && !hash.is_of(b"password ") && !hash.is_of(b""));
        assert_eq!(format!("{hash:?}"), "***");
        assert!(PasswordHash::read(PasswordHash::of_nobody().text()).is_some());
    }

    #[test]
    fn other_algorithms_and_hashes_without_measure_are_refused() {
        let with = |from: &str, to: &str| KNOWN.replace(from, to);
        for text in [
            with("argon2id", "argon2i"),
            with("argon2id", "argon2d"),
            with("argon2id", "scrypt"),
            with("v=19", "v=16"),
            with("m=65536", "m=4294967295"),
            with("m=65536", "m=1048576"),
            with("t=2", "t=4000"),
            with("t=2", "t=0"),
            with("$c29tZXNhbHQ", ""),
            with("$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", ""),
            with("CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "CTFh"),
            format!("{KNOWN}\n"),
            "password".to_owned(),
            String::new(),
        ] {
            assert!(PasswordHash::read(&text).is_none(), "{text}");
        }
    }
}
