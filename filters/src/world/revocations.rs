//! Tokens that no longer hold, though their own dates say that they do.
//!
//! A list of this process, bounded; it survives reloads, and is handed over at an upgrade. Every check of a
//! token looks here, whatever was found out about the token before.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::world::Clock;

/// Most entries; each takes some 200 bytes besides its text.
pub(crate) const MOST: usize = 100_000;
/// Those that logouts leave to administrators.
const RESERVED: usize = MOST / 10;
/// How much longer entries last than they say, for tokens that are let pass for a while after their end.
pub(crate) const GRACE: Duration = Duration::from_secs(3600);

/// One entry: which tokens no longer hold, and until when it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The identity whose tokens they are.
    pub identity: Arc<str>,
    /// Which of them.
    #[serde(flatten)]
    pub which: Revoked,
    /// Only those that were issued (`iat`) before this, in Unix seconds; those that do not tell count as such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<u64>,
    /// When the last of these tokens ends, in Unix seconds, as in their `exp`.
    pub expires: u64,
}

/// Which tokens of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revoked {
    /// The one with this `jti`.
    Jti(Box<str>),
    /// Those with this `sub`.
    Sub(Box<str>),
    /// All.
    #[serde(untagged)]
    All {},
}

/// What a token says of itself that an entry can be about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Matched<'a> {
    /// `jti`
    pub id: Option<&'a str>,
    /// `sub`
    pub subject: Option<&'a str>,
    /// `iat`, in Unix seconds
    pub issued: Option<f64>,
}

/// Why an entry was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// There are as many as there may be.
    TooMany,
    /// Another process is taking over, and would not know of it.
    HandedOver,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => f.write_str("there are as many entries as there may be, and none has expired"),
            Self::HandedOver => f.write_str("another process is taking over; ask again"),
        }
    }
}

impl std::error::Error for Full {}

/// The list.
pub struct Revocations {
    clock: Arc<dyn Clock>,
    /// Entries there are: without any, a check is one look at this.
    count: AtomicUsize,
    handed_over: AtomicBool,
    by_identity: RwLock<HashMap<Arc<str>, OfIdentity>>,
}

type OfIdentity = HashMap<Revoked, Rule>;

#[derive(Debug, Clone, Copy)]
struct Rule {
    issued_before: Option<u64>,
    expires: u64,
}

impl Rule {
    fn is_over(self, now: u64) -> bool {
        now >= self.expires.saturating_add(GRACE.as_secs())
    }

    fn revokes(self, issued: Option<f64>, now: u64) -> bool {
        let in_time = match (self.issued_before, issued) {
            // Both are far below where seconds as floats lose any.
            (Some(before), Some(issued)) => issued < before as f64,
            (Some(_), None) | (None, _) => true,
        };
        in_time && !self.is_over(now)
    }

    /// What revokes all that either does. Where one is about all tokens and ends before the other, that is said of the
    /// tokens which are issued until then.
    fn with(self, other: Self) -> Self {
        let expires = self.expires.max(other.expires);
        let issued_before = match (self.issued_before, other.issued_before) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (None, Some(before)) if self.expires < expires => Some(before.max(self.expires)),
            (Some(before), None) if other.expires < expires => Some(before.max(other.expires)),
            _ => None,
        };
        Self { issued_before, expires }
    }
}

impl Revocations {
    /// An empty list.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (count, handed_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { clock, count, handed_over, by_identity: RwLock::default() }
    }

    /// Whether an entry is about this token.
    #[must_use]
    pub fn revokes(&self, identity: &str, token: Matched<'_>, now: SystemTime) -> bool {
        if self.is_empty() {
            return false;
        }
        let now = seconds(now);
        let by_identity = self.by_identity.read();
        let Some(entries) = by_identity.get(identity) else { return false };
        let id = token.id.map(|id| Revoked::Jti(id.into()));
        let subject = token.subject.map(|subject| Revoked::Sub(subject.into()));
        [id, subject, Some(Revoked::All {})].into_iter().flatten().any(|which| {
            let rule = entries.get(&which);
            rule.is_some_and(|rule| rule.revokes(token.issued, now))
        })
    }

    /// Adds an entry, in the place of one about the same tokens; says whether it is new.
    ///
    /// # Errors
    /// There is no room, or the list is another process's by now.
    pub fn add(&self, revocation: Revocation) -> Result<bool, Full> {
        self.put(revocation, MOST, |_, rule| rule)
    }

    /// Adds an entry to one about the same tokens, of which nothing is taken back; says whether it is new. This is for
    /// what users cause: some room is left for [`add`](Self::add).
    ///
    /// # Errors
    /// There is no room, or the list is another process's by now.
    pub fn extend(&self, revocation: Revocation) -> Result<bool, Full> {
        let now = seconds(self.clock.wall());
        let settle = |known: Rule, rule| if known.is_over(now) { rule } else { known.with(rule) };
        self.put(revocation, MOST - RESERVED, settle)
    }

    /// Puts an entry in if there are fewer than `most`; `settle` says what becomes of the rule that is there and of its
    /// own.
    fn put(
        &self,
        revocation: Revocation,
        most: usize,
        settle: impl FnOnce(Rule, Rule) -> Rule,
    ) -> Result<bool, Full> {
        let mut by_identity = self.by_identity.write();
        // Read under the lock: what is added before is handed over.
        if self.handed_over.load(Ordering::Relaxed) {
            return Err(Full::HandedOver);
        }
        let Revocation { identity, which, issued_before, expires } = revocation;
        let known = by_identity.get(&identity).and_then(|entries| entries.get(&which)).copied();
        if known.is_none() && self.len() >= most {
            self.sweep(&mut by_identity);
            if self.len() >= most {
                return Err(Full::TooMany);
            }
        }
        let rule = Rule { issued_before, expires };
        let rule = known.map_or(rule, |known| settle(known, rule));
        by_identity.entry(identity).or_default().insert(which, rule);
        self.count.fetch_add(usize::from(known.is_none()), Ordering::Release);
        Ok(known.is_none())
    }

    /// Takes an entry out; says whether there was one.
    ///
    /// # Errors
    /// The list is another process's by now.
    pub fn remove(&self, identity: &str, which: &Revoked) -> Result<bool, Full> {
        let mut by_identity = self.by_identity.write();
        if self.handed_over.load(Ordering::Relaxed) {
            return Err(Full::HandedOver);
        }
        let removed = by_identity.get_mut(identity).and_then(|entries| entries.remove(which)).is_some();
        self.count.fetch_sub(usize::from(removed), Ordering::Release);
        Ok(removed)
    }

    /// Every entry, of one identity or of all, by identity and what it is about.
    #[must_use]
    pub fn list(&self, identity: Option<&str>) -> Vec<Revocation> {
        self.sweep(&mut self.by_identity.write());
        let by_identity = self.by_identity.read();
        let wanted = by_identity.iter().filter(|(name, _)| identity.is_none_or(|wanted| wanted == &***name));
        let mut list: Vec<Revocation> = wanted
            .flat_map(|(name, entries)| {
                entries.iter().map(|(which, rule)| Revocation {
                    identity: name.clone(),
                    which: which.clone(),
                    issued_before: rule.issued_before,
                    expires: rule.expires,
                })
            })
            .collect();
        list.sort_unstable_by(|a, b| (&a.identity, order(&a.which)).cmp(&(&b.identity, order(&b.which))));
        list
    }

    /// Every entry, for another process to [`import`](Self::import); this one takes none from now on.
    #[must_use]
    pub fn hand_over(&self) -> Vec<Revocation> {
        {
            let _last = self.by_identity.write();
            self.handed_over.store(true, Ordering::Relaxed);
        }
        self.list(None)
    }

    /// The other process did not take over: this one takes entries again.
    pub fn take_back(&self) {
        self.handed_over.store(false, Ordering::Relaxed);
    }

    /// Takes over entries, except where there is one of its own.
    pub fn import(&self, entries: Vec<Revocation>) {
        for entry in entries {
            if !self.knows(&entry) {
                let _ = self.add(entry);
            }
        }
    }

    /// Entries there are, expired ones that nothing has removed yet included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn knows(&self, entry: &Revocation) -> bool {
        let by_identity = self.by_identity.read();
        by_identity.get(&entry.identity).is_some_and(|entries| entries.contains_key(&entry.which))
    }

    fn sweep(&self, by_identity: &mut HashMap<Arc<str>, OfIdentity>) {
        let now = seconds(self.clock.wall());
        by_identity.retain(|_, entries| {
            entries.retain(|_, rule| !rule.is_over(now));
            !entries.is_empty()
        });
        self.count.store(by_identity.values().map(HashMap::len).sum(), Ordering::Release);
    }
}

fn order(which: &Revoked) -> (u8, &str) {
    match which {
        Revoked::All {} => (0, ""),
        Revoked::Jti(id) => (1, id),
        Revoked::Sub(subject) => (2, subject),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::ManualClock;

    /// 2026-01-01, when the clock of these tests starts.
    const START: u64 = 1_767_225_600;

    fn list() -> (Arc<ManualClock>, Revocations) {
        let clock = Arc::new(ManualClock::new());
        (clock.clone(), Revocations::new(clock))
    }

    fn entry(which: Revoked, issued_before: Option<u64>) -> Revocation {
        Revocation { identity: "corp".into(), which, issued_before, expires: START + 60 }
    }

    fn sub(name: &str) -> Revoked {
        Revoked::Sub(name.into())
    }

    fn jti(id: &str) -> Revoked {
        Revoked::Jti(id.into())
    }

    fn alice(issued: Option<f64>) -> Matched<'static> {
        Matched { id: Some("1"), subject: Some("alice"), issued }
    }

    #[test]
    fn a_token_is_revoked_by_its_id_by_its_subject_and_with_all_of_its_identity() {
        for which in [jti("1"), sub("alice"), Revoked::All {}] {
            let (clock, list) = list();
            assert!(!list.revokes("corp", alice(None), clock.wall()));
            assert_eq!(list.add(entry(which.clone(), None)), Ok(true));
            assert!(list.revokes("corp", alice(None), clock.wall()));
            assert!(!list.revokes("other", alice(None), clock.wall()));
            let bob = Matched { id: Some("alice"), subject: Some("1"), issued: None };
            assert_eq!(list.revokes("corp", bob, clock.wall()), which == Revoked::All {});
            assert_eq!(list.remove("corp", &which), Ok(true));
            assert_eq!(list.remove("corp", &which), Ok(false));
            assert!(!list.revokes("corp", alice(None), clock.wall()));
        }
    }

    #[test]
    fn tokens_issued_later_hold_and_those_that_do_not_tell_do_not() {
        let (clock, list) = list();
        list.add(entry(sub("alice"), Some(START))).unwrap();
        for (issued, revoked) in [(Some(START as f64 - 0.5), true), (Some(START as f64), false), (None, true)]
        {
            assert_eq!(list.revokes("corp", alice(issued), clock.wall()), revoked, "{issued:?}");
        }
    }

    #[test]
    fn an_entry_lasts_an_hour_longer_than_its_tokens() {
        let (clock, list) = list();
        list.add(entry(jti("1"), None)).unwrap();
        clock.advance(Duration::from_secs(3659));
        assert!(list.revokes("corp", alice(None), clock.wall()));
        clock.advance(Duration::from_secs(1));
        assert!(!list.revokes("corp", alice(None), clock.wall()));
        assert!(list.list(None).is_empty());
        assert!(list.is_empty());
    }

    #[test]
    fn the_list_is_bounded_and_expired_entries_make_room() {
        let (clock, list) = list();
        for n in 0..MOST {
            assert_eq!(list.add(entry(jti(&n.to_string()), None)), Ok(true));
        }
        assert_eq!(list.add(entry(jti("one more"), None)), Err(Full::TooMany));
        assert_eq!(list.add(entry(jti("1"), None)), Ok(false), "one that is there can be changed");
        clock.advance(Duration::from_secs(60) + GRACE);
        assert_eq!(list.add(entry(jti("one more"), None)), Ok(true));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn logouts_leave_room_for_administrators() {
        let (_, list) = list();
        for n in 0..MOST - RESERVED {
            assert_eq!(list.extend(entry(jti(&n.to_string()), None)), Ok(true));
        }
        assert_eq!(list.extend(entry(jti("one more"), None)), Err(Full::TooMany));
        assert_eq!(list.extend(entry(jti("1"), None)), Ok(false), "one that is there can be changed");
        assert_eq!(list.add(entry(jti("one more"), None)), Ok(true));
    }

    #[test]
    fn what_extends_an_entry_takes_nothing_of_it_back() {
        let made = |issued_before, expires| Revocation { expires, ..entry(sub("alice"), issued_before) };
        for (there, more, both) in [
            ((None, START + 900), (Some(START + 1), START + 60), (None, START + 900)),
            ((Some(START + 9), START + 60), (Some(START + 1), START + 900), (Some(START + 9), START + 900)),
            ((Some(START + 1), START + 60), (Some(START + 9), START + 60), (Some(START + 9), START + 60)),
            ((Some(START + 1), START + 60), (None, START + 60), (None, START + 60)),
            // A ban that ends first is no longer one then.
            ((None, START + 60), (Some(START + 1), START + 900), (Some(START + 60), START + 900)),
            ((Some(START + 90), START + 900), (None, START + 60), (Some(START + 90), START + 900)),
        ] {
            let (_, list) = list();
            assert_eq!(list.extend(made(there.0, there.1)), Ok(true));
            assert_eq!(list.extend(made(more.0, more.1)), Ok(false));
            assert_eq!(list.list(None), [made(both.0, both.1)], "{there:?} {more:?}");
            // Who adds one in its place means just that.
            assert_eq!(list.add(made(more.0, more.1)), Ok(false));
            assert_eq!(list.list(None), [made(more.0, more.1)]);
        }
    }

    #[test]
    fn an_entry_that_is_over_adds_nothing_to_the_next() {
        let (clock, list) = list();
        list.add(entry(sub("alice"), None)).unwrap();
        clock.advance(Duration::from_secs(60) + GRACE);
        let later = Revocation { expires: START + 90_000, ..entry(sub("alice"), Some(START + 1)) };
        list.extend(later.clone()).unwrap();
        assert_eq!(list.list(None), [later]);
    }

    #[test]
    fn another_process_goes_on_with_the_list_and_this_one_changes_it_no_more() {
        let ((clock, old), (_, new)) = (list(), list());
        old.add(entry(jti("1"), None)).unwrap();
        old.add(entry(Revoked::All {}, Some(START))).unwrap();
        let handed = serde_json::to_string(&old.hand_over()).unwrap();
        assert_eq!(old.add(entry(jti("2"), None)), Err(Full::HandedOver));
        assert_eq!(old.remove("corp", &jti("1")), Err(Full::HandedOver));
        assert!(old.revokes("corp", alice(None), clock.wall()), "it still goes by it");
        new.import(serde_json::from_str(&handed).unwrap());
        assert_eq!(new.list(None), old.list(Some("corp")));
        old.take_back();
        assert_eq!(old.add(entry(jti("2"), None)), Ok(true));
    }
}
