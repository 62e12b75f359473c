//! Cookies that only the gateway can make and read.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use pingora_http::RequestHeader;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::condition::cookie_values;
use crate::identity::Source;
use crate::values::Secret;

/// The longest value of one cookie: browsers take 4096 bytes with name and attributes (RFC 6265 s6.1).
const PIECE: usize = 3500;
/// The most pieces of a session.
const PIECES: usize = 5;
/// Logins under way at a time in one browser.
const LOGINS: usize = 8;
/// What a key is known by.
const NAME_LEN: usize = 4;

/// What is in a cookie; none can stand for another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Login,
    Session,
    /// What a store keeps.
    Kept,
}

/// The cookies of one identity.
pub(super) struct Jar {
    /// What the first piece of a session is called.
    name: String,
    secure: bool,
    /// The first one seals, all of them open.
    keys: Vec<Key>,
    /// Whose cookies these are: those of another identity, provider or client do not open.
    scope: String,
}

struct Key {
    name: [u8; NAME_LEN],
    secret: Zeroizing<[u8; 32]>,
}

impl Key {
    fn new(written: &Secret) -> Self {
        let digest = |what: &str| -> [u8; 32] {
            let digest = Sha256::new_with_prefix(what).chain_update(written.expose());
            digest.finalize().into()
        };
        let [a, b, c, d, ..] = digest("tollhouse cookie key name\n");
        Self { name: [a, b, c, d], secret: Zeroizing::new(digest("tollhouse cookie key\n")) }
    }

    fn cipher(&self) -> Option<RandomizedNonceKey> {
        RandomizedNonceKey::new(&AES_256_GCM, &*self.secret).ok()
    }
}

impl Jar {
    pub(super) fn new(name: &str, secure: bool, keys: &[Secret], scope: String) -> Self {
        let name = if secure { format!("__Host-{name}") } else { name.to_owned() };
        Self { name, secure, keys: keys.iter().map(Key::new).collect(), scope }
    }

    /// All that its cookies can be called.
    pub(super) fn sources(&self) -> Vec<Source> {
        let names = (0..PIECES).map(|at| self.piece(at)).chain((0..LOGINS).map(|at| self.login(at)));
        names.map(|name| Source::Cookie(name.into())).collect()
    }

    fn piece(&self, at: usize) -> String {
        if at == 0 { self.name.clone() } else { format!("{}.{at}", self.name) }
    }

    fn login(&self, at: usize) -> String {
        format!("{}.login{at}", self.name)
    }

    /// The text of a cookie; none without randomness.
    fn seal(&self, purpose: Purpose, plain: &[u8]) -> Option<String> {
        let key = self.keys.first()?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(self.aad(purpose, key));
        let nonce = key.cipher()?.seal_in_place_append_tag(aad, &mut sealed).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&key.name[..], nonce.as_ref(), &sealed].concat()))
    }

    /// What was sealed; none for anything that is not exactly what this identity made for this purpose.
    fn open(&self, purpose: Purpose, text: &str) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (name, rest) = bytes.split_at_checked(NAME_LEN)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        self.keys.iter().filter(|key| key.name == name).find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut plain = Zeroizing::new(sealed.to_vec());
            let aad = Aad::from(self.aad(purpose, key));
            let length = key.cipher()?.open_in_place(nonce, aad, &mut plain).ok()?.len();
            plain.truncate(length);
            Some(plain)
        })
    }

    /// The text of what a store is to keep.
    pub(super) fn wrap(&self, plain: &[u8]) -> Option<String> {
        self.seal(Purpose::Kept, plain)
    }

    /// What was wrapped.
    pub(super) fn unwrap(&self, text: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.open(Purpose::Kept, text)
    }

    fn aad(&self, purpose: Purpose, key: &Key) -> Vec<u8> {
        [&key.name[..], format!("{purpose:?}\n{}", self.scope).as_bytes()].concat()
    }

    /// The session that a request shows.
    pub(super) fn session(&self, request: &RequestHeader) -> Option<Zeroizing<Vec<u8>>> {
        let first = only(request, &self.name)?;
        let (count, first) = first.split_once('.')?;
        let count: usize = count.parse().ok().filter(|count| (1..=PIECES).contains(count))?;
        let mut text = first.to_owned();
        for at in 1..count {
            text.push_str(&only(request, &self.piece(at))?);
        }
        self.open(Purpose::Session, &text)
    }

    /// `Set-Cookie` with a session for this many seconds; none for one that is too large.
    pub(super) fn keep(
        &self,
        request: &RequestHeader,
        plain: &[u8],
        seconds: u64,
    ) -> Option<Vec<HeaderValue>> {
        let text = self.seal(Purpose::Session, plain)?;
        let pieces: Vec<&str> = text
            .as_bytes()
            .chunks(PIECE)
            .map(|piece| std::str::from_utf8(piece).unwrap_or_default())
            .collect();
        if pieces.len() > PIECES {
            return None;
        }
        let first = format!("{}.{}", pieces.len(), pieces[0]);
        let values = [first.as_str()].into_iter().chain(pieces.iter().skip(1).copied());
        let set = values.enumerate().map(|(at, value)| self.set(&self.piece(at), value, seconds));
        Some(set.chain(self.dropped(request, pieces.len())).collect())
    }

    /// `Set-Cookie` without a session.
    pub(super) fn drop(&self, request: &RequestHeader) -> Vec<HeaderValue> {
        self.dropped(request, 0).collect()
    }

    /// Ends the pieces from this one on that the request has.
    fn dropped(&self, request: &RequestHeader, from: usize) -> impl Iterator<Item = HeaderValue> {
        let names = (from..PIECES).map(|at| self.piece(at));
        let there = names.filter(|name| cookie_values(&request.headers, name).next().is_some());
        there.map(|name| self.set(&name, "", 0))
    }

    /// The logins that were begun in this browser, and where.
    pub(super) fn logins(
        &self,
        request: &RequestHeader,
    ) -> impl Iterator<Item = (usize, Zeroizing<Vec<u8>>)> {
        (0..LOGINS).filter_map(|at| Some((at, self.open(Purpose::Login, &only(request, &self.login(at))?)?)))
    }

    /// `Set-Cookie` with a login that was begun, in a place of its own if there is one: in any of those, as pages that are
    /// opened at the same time do not know of each other.
    pub(super) fn begin(&self, request: &RequestHeader, plain: &[u8], seconds: u64) -> Option<HeaderValue> {
        let is_free = |at: &usize| cookie_values(&request.headers, &self.login(*at)).next().is_none();
        let free: Vec<usize> = (0..LOGINS).filter(is_free).collect();
        let at = fastrand::choice(free).unwrap_or_else(|| fastrand::usize(..LOGINS));
        Some(self.set(&self.login(at), &self.seal(Purpose::Login, plain)?, seconds))
    }

    /// `Set-Cookie` without this login.
    pub(super) fn end(&self, at: usize) -> HeaderValue {
        self.set(&self.login(at), "", 0)
    }

    /// `Lax`: sent when a user comes back from the provider, and not with what another site does in the background.
    fn set(&self, name: &str, value: &str, seconds: u64) -> HeaderValue {
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
        let mut value = HeaderValue::try_from(text).expect("names and values are visible ASCII");
        value.set_sensitive(true);
        value
    }
}

/// The value of a cookie; none where there are several, of which one may be somebody else's.
fn only(request: &RequestHeader, name: &str) -> Option<String> {
    let mut values = cookie_values(&request.headers, name);
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.into_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const OLD: &str = "an old key of thirty-two bytes or so";
    const NEW: &str = "a new key of thirty-two bytes, or so";

    fn jar(secure: bool, keys: &[&str], scope: &str) -> Jar {
        let keys: Vec<Secret> = keys.iter().map(|key| Secret::new(*key)).collect();
        Jar::new("web", secure, &keys, scope.to_owned())
    }

    /// A request with what these fields set.
    fn after(set: &[HeaderValue]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        for line in set {
            let pair = line.to_str().expect("text").split(';').next().expect("a pair").to_owned();
            request.append_header("cookie", pair).expect("valid");
        }
        request
    }

    #[test]
    fn a_session_comes_back_whole_however_large_and_is_never_readable() {
        let (jar, empty) = (jar(true, &[NEW], "a"), after(&[]));
        for (length, pieces) in [(10, 1), (2000, 1), (3000, 2), (12_000, 5)] {
            let plain = vec![b'x'; length];
            let set = jar.keep(&empty, &plain, 60).expect("fits");
            assert_eq!(set.len(), pieces, "{length}");
            for line in &set {
                let line = line.to_str().expect("text");
                assert!(line.len() <= 4096 && line.starts_with("__Host-web"), "{line}");
                assert!(line.ends_with("; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"), "{line}");
                assert!(!line.contains("xxxx"), "{line}");
            }
            assert_eq!(jar.session(&after(&set)).as_deref(), Some(&plain));
        }
        assert!(jar.keep(&empty, &[b'x'; 14_000], 60).is_none());
    }

    #[test]
    fn a_smaller_session_ends_the_pieces_of_a_larger_one() {
        let jar = jar(false, &[NEW], "a");
        let large = after(&jar.keep(&after(&[]), &[1; 6000], 60).expect("fits"));
        let small = jar.keep(&large, b"small", 60).expect("fits");
        let ended: Vec<_> = small[1..].iter().map(|line| line.to_str().expect("text")).collect();
        let end = |name| format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax");
        assert_eq!(ended, [end("web.1"), end("web.2")]);
        assert_eq!(jar.drop(&large).len(), 3);
    }

    #[test]
    fn all_keys_open_and_the_first_one_seals() {
        let empty = after(&[]);
        let before = jar(true, &[OLD], "a").keep(&empty, b"plain", 60).expect("fits");
        let both = jar(true, &[NEW, OLD], "a");
        assert_eq!(both.session(&after(&before)).as_deref().map(Vec::as_slice), Some(&b"plain"[..]));
        let now = after(&both.keep(&empty, b"plain", 60).expect("fits"));
        assert!(jar(true, &[NEW], "a").session(&now).is_some());
        assert!(jar(true, &[OLD], "a").session(&now).is_none());
    }

    #[test]
    fn what_was_made_for_something_else_or_changed_does_not_open() {
        let own = jar(true, &[NEW], "a");
        let set = own.keep(&after(&[]), b"plain", 60).expect("fits");
        assert!(jar(true, &[NEW], "b").session(&after(&set)).is_none(), "another identity's");
        let login = own.begin(&after(&[]), b"plain", 60).expect("sealed");
        let (name, value) = login.to_str().expect("text").split_once('=').expect("a pair");
        assert!(name.starts_with("__Host-web.login"), "{name}");
        let posing = HeaderValue::try_from(format!("__Host-web=1.{value}")).expect("valid");
        assert!(own.session(&after(&[posing])).is_none(), "a login is no session");
        let text = set[0].to_str().expect("text");
        let value = text.split(';').next().expect("a pair");
        for at in "__Host-web=1.".len()..value.len() {
            let mut changed = value.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = HeaderValue::from_bytes(&changed).expect("valid");
            assert!(own.session(&after(&[changed])).is_none(), "{at}");
        }
        for value in ["", "1.", "1.AAAA", "0.AAAA", "9.AAAA", "x", "2.AAAA"] {
            let line = HeaderValue::try_from(format!("__Host-web={value}")).expect("valid");
            assert!(own.session(&after(&[line])).is_none(), "{value}");
        }
        assert!(own.session(&after(&[set[0].clone(), set[0].clone()])).is_none(), "two are none");
    }

    #[test]
    fn a_browser_has_a_few_logins_under_way() {
        let jar = jar(true, &[NEW], "a");
        let mut set = Vec::new();
        for at in 0..LOGINS {
            set.push(jar.begin(&after(&set), at.to_string().as_bytes(), 60).expect("sealed"));
        }
        let mut begun: Vec<_> = jar.logins(&after(&set)).map(|(_, plain)| plain.to_vec()).collect();
        begun.sort_unstable();
        assert_eq!(begun, (0..LOGINS).map(|at| at.to_string().into_bytes()).collect::<Vec<_>>());
        let further = jar.begin(&after(&set), b"more", 60).expect("sealed");
        assert!(further.to_str().expect("text").starts_with("__Host-web.login"));
    }

    #[test]
    fn pages_that_are_opened_at_once_seldom_take_the_cookie_of_each_other() {
        let (jar, empty) = (jar(true, &[NEW], "a"), after(&[]));
        let begin = |_| jar.begin(&empty, b"plain", 60).expect("sealed");
        let name = |set: HeaderValue| set.to_str().expect("text").split('=').next().map(str::to_owned);
        let names: BTreeSet<_> = (0..200).map(begin).map(name).collect();
        assert_eq!(names.len(), LOGINS, "{names:?}");
    }
}
