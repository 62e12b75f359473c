//! Backends whose addresses are in etcd: the keys that begin with a prefix, and what changes of them.
//!
//! By the JSON gateway of the API of version 3: a range gives all of it at one revision, a watch what came after
//! (<https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>). Keys that go with their leases are removed as others are.

mod messages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use serde::de::DeserializeOwned;
use serde_json::json;

use self::messages::{Event, Kind, Line, Pair, Range, Token, Watched, read, refused, unexpected};
use super::server::{Problem, Server, brief};
use super::{Directory, Failed, Instance, Tell, World, entry, jittered};
use crate::config::discovery::{EtcdDiscovery as Written, Shared as _};
use crate::upstream::call::{CallError, Waiting};

/// Keys asked for at once.
const PAGE: usize = 1000;
/// Most keys with the prefix.
const MOST: usize = 20_000;
/// How long a watch may say nothing before all is asked for anew, lest its connection is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// The longest watch.
const LONGEST: Duration = Duration::from_secs(600);
/// Values that cannot be read and are logged one by one; more are counted.
const NAMED: usize = 8;
/// Pause before all is asked for anew.
const ANEW: Duration = Duration::from_secs(1);

/// A cluster of etcd.
pub(super) struct Etcd {
    written: Written,
    base: PathBuf,
    /// Who is asked first.
    first: AtomicUsize,
    world: World,
    /// The values that cannot be read and were logged.
    warned: Mutex<Unread>,
}

/// Keys and why their values cannot be read.
type Unread = BTreeMap<Vec<u8>, &'static str>;

impl Etcd {
    /// The cluster as it is written; files are relative to `base`.
    pub(super) fn new(written: &Written, base: &Path, world: World) -> Self {
        let (written, base) = (written.clone(), base.to_owned());
        Self { written, base, first: AtomicUsize::new(0), world, warned: Mutex::default() }
    }
}

/// Checks what is written, files included.
///
/// # Errors
/// What is wrong, as paths to keys and messages.
pub(super) fn check(written: &Written, base: &Path) -> Result<(), Vec<(String, String)>> {
    let wrong = |key: &str, message: &str| Err(vec![(key.to_owned(), message.to_owned())]);
    if written.endpoints.is_empty() {
        return wrong("endpoints", "at least one is needed");
    }
    if written.prefix.is_empty() {
        return wrong("prefix", "must not be empty: all keys of etcd would be backends");
    }
    servers(written, base).map(drop)
}

fn servers(written: &Written, base: &Path) -> Result<Vec<Server>, Vec<(String, String)>> {
    written.endpoints.iter().map(|url| Server::new(url, written.tls.as_ref(), base)).collect()
}

#[async_trait]
impl Directory for Etcd {
    async fn follow(&self, tell: &Tell) -> Failed {
        // Anew each time, as certificates may have been replaced.
        let servers = match servers(&self.written, &self.base) {
            Ok(servers) => servers,
            Err(problems) => return super::server::joined(problems),
        };
        let (count, first) = (servers.len(), self.first.load(Ordering::Relaxed));
        let mut last = Failed::from("there are no servers");
        for at in (first..first + count).map(|at| at % count) {
            let mut link = Link { etcd: self, server: &servers[at], token: None, told: false };
            last = link.follow(tell).await.failed(link.server);
            self.first.store((at + 1) % count, Ordering::Relaxed);
            if link.told {
                break;
            }
        }
        last
    }
}

/// One server while it is followed.
struct Link<'a> {
    etcd: &'a Etcd,
    server: &'a Server,
    token: Option<HeaderValue>,
    told: bool,
}

/// What is known: the keys, and the revision that they are of.
struct Known {
    revision: i64,
    keys: BTreeMap<Vec<u8>, Result<Option<Instance>, &'static str>>,
}

impl Link<'_> {
    async fn follow(&mut self, tell: &Tell) -> Problem {
        if let Err(problem) = self.log_in().await {
            return problem;
        }
        loop {
            let mut known = match self.range().await {
                Ok(known) => known,
                Err(problem) => return problem,
            };
            let watched = match self.tell(&known, tell) {
                Ok(()) => self.watch(&mut known, tell).await,
                told => told,
            };
            if let Err(problem) = watched {
                return problem;
            }
            tokio::time::sleep(jittered(ANEW)).await;
        }
    }

    fn tell(&mut self, known: &Known, tell: &Tell) -> Result<(), Problem> {
        let instances: Vec<_> = known.keys.values().flatten().flatten().cloned().collect();
        let unread = known.keys.values().filter(|key| key.is_err()).count();
        for (key, why) in known.newly_unread(&mut self.etcd.warned.lock()) {
            let key = brief(&String::from_utf8_lossy(&key));
            log::warn!(registry = "etcd", key, why, all = unread; "a value that cannot be read is left out");
        }
        if instances.is_empty() && unread > 0 {
            return Err(Problem::Said(format!("none of the {unread} values with the prefix can be read")));
        }
        tell.set(instances);
        self.told = true;
        Ok(())
    }

    async fn log_in(&mut self) -> Result<(), Problem> {
        let Some((name, password)) = self.etcd.written.credentials() else { return Ok(()) };
        let login = json!({"name": name, "password": password.expose()}).to_string();
        // Who shows one that has ended may not even log in.
        self.token = None;
        let Token { token } = self.ask_once("/v3/auth/authenticate", login.into()).await?;
        let mut token = HeaderValue::from_str(&token).map_err(|_| unexpected())?;
        token.set_sensitive(true);
        self.token = Some(token);
        Ok(())
    }

    /// All keys, page by page, at the revision of the first page.
    async fn range(&mut self) -> Result<Known, Problem> {
        let prefix = self.etcd.written.prefix.as_bytes();
        let end = STANDARD.encode(after_all(prefix));
        let mut from = prefix.to_vec();
        let mut known = Known { revision: 0, keys: BTreeMap::new() };
        loop {
            let page = json!({
                "key": STANDARD.encode(&from), "range_end": end, "limit": PAGE.to_string(),
                "revision": known.revision.to_string(),
            });
            let Range { header, kvs, more } = self.ask("/v3/kv/range", page.to_string().into()).await?;
            if known.revision == 0 {
                known.revision = header.revision;
            }
            match next(&from, &kvs)? {
                Some(next) => from = next,
                None => return Ok(known),
            }
            for pair in kvs {
                known.put(pair)?;
            }
            if !more {
                return Ok(known);
            }
        }
    }

    /// Takes in what changes after the known revision, until nothing did for long, or history is gone. Then all is to be
    /// asked for anew: it shows whether the server is still there.
    async fn watch(&mut self, known: &mut Known, tell: &Tell) -> Result<(), Problem> {
        let prefix = self.etcd.written.prefix.as_bytes();
        let create = json!({"create_request": {
            "key": STANDARD.encode(prefix), "range_end": STANDARD.encode(after_all(prefix)),
            "start_revision": (known.revision + 1).to_string(),
        }});
        let mut head = self.head("/v3/watch")?;
        // A server that has lost the others of its cluster ends the watch instead of saying nothing.
        head.insert_header("grpc-metadata-hasleader", "true").map_err(|_| unexpected())?;
        let body = create.to_string().into();
        let world = &self.etcd.world;
        let mut lines = self.server.lines(world, head, body, (LONGEST, jittered(SILENCE))).await?;
        loop {
            let line = match lines.next().await {
                Ok(Some(line)) => line,
                Ok(None) => return Err(Problem::Said("the watch ended".to_owned())),
                Err(CallError::Timeout(Waiting::Read | Waiting::Total)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let watched = match read(&line)? {
                Line { result: Some(watched), .. } => watched,
                Line { error, .. } => return Err(error.map_or_else(unexpected, refused)),
            };
            // One that is not permitted is said to be created too, and nothing follows.
            if watched.canceled && watched.compact_revision == 0 {
                return Err(Problem::Said(format!("the watch was ended: {}", brief(&watched.cancel_reason))));
            }
            if watched.compact_revision > 0 || (watched.created && watched.header.revision < known.revision) {
                return Ok(());
            }
            if watched.created {
                // What is known is confirmed; what happened since comes next, whatever the header says.
                tell.still();
                continue;
            }
            known.change(watched)?;
            self.tell(known, tell)?;
        }
    }

    /// Asks, with a new token if the one there is has ended: one lasts five minutes by default, a watch may last ten.
    async fn ask<T: DeserializeOwned>(&mut self, path: &str, body: Bytes) -> Result<T, Problem> {
        let told = self.ask_once(path, body.clone()).await;
        if self.token.is_none() || !matches!(told, Err(Problem::Status(401, _))) {
            return told;
        }
        self.log_in().await?;
        self.ask_once(path, body).await
    }

    async fn ask_once<T: DeserializeOwned>(&self, path: &str, body: Bytes) -> Result<T, Problem> {
        let answer = self.server.ask(&self.etcd.world, self.head(path)?, body).await?;
        read(&answer)
    }

    fn head(&self, path: &str) -> Result<RequestHeader, Problem> {
        let mut head = self.server.head("POST", path)?;
        head.insert_header(CONTENT_TYPE, "application/json").map_err(|_| unexpected())?;
        if let Some(token) = &self.token {
            head.insert_header(AUTHORIZATION, token).map_err(|_| unexpected())?;
        }
        Ok(head)
    }
}

impl Known {
    fn put(&mut self, pair: Pair) -> Result<(), Problem> {
        if self.keys.len() >= MOST && !self.keys.contains_key(&pair.key) {
            return Err(Problem::Said(format!("there are more than {MOST} keys with the prefix")));
        }
        let name = pair.key.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let instance = entry::read(name, &pair.value);
        self.keys.insert(pair.key, instance);
        Ok(())
    }

    /// What cannot be read and was not known to be so. No more are remembered than are logged.
    fn newly_unread(&self, warned: &mut Unread) -> Unread {
        let unread =
            self.keys.iter().filter_map(|(key, told)| Some((key.clone(), told.as_ref().err().copied()?)));
        let mut unread: Unread = unread.take(NAMED).collect();
        let before = std::mem::replace(warned, unread.clone());
        unread.retain(|key, why| before.get(key) != Some(why));
        unread
    }

    fn change(&mut self, watched: Watched) -> Result<(), Problem> {
        // With events, the header may be ahead of those that are still to come.
        let last = watched.events.iter().map(|event| event.kv.mod_revision).max();
        self.revision = self.revision.max(last.unwrap_or(watched.header.revision));
        for Event { kind, kv } in watched.events {
            match kind {
                Kind::Put => self.put(kv)?,
                Kind::Delete => drop(self.keys.remove(&kv.key)),
            }
        }
        Ok(())
    }
}

/// The smallest key after those of a page that begins with this one; none after an empty page.
fn next(from: &[u8], page: &[Pair]) -> Result<Option<Vec<u8>>, Problem> {
    let Some(last) = page.last() else { return Ok(None) };
    if last.key.as_slice() < from {
        // Else it would never end.
        return Err(Problem::Said("a range does not go on after its last key".to_owned()));
    }
    Ok(Some([last.key.as_slice(), &[0]].concat()))
}

/// The smallest key that is greater than all with this prefix; `\0` stands for no such key.
fn after_all(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|byte| *byte < 0xff) {
        Some(at) => [&prefix[..at], &[prefix[at] + 1]].concat(),
        None => vec![0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_range_is_after_all_keys_with_the_prefix_and_no_others() {
        for (prefix, end) in [
            (&b"/services/users/"[..], &b"/services/users0"[..]),
            (b"a", b"b"),
            (b"a\xff", b"b"),
            (b"a\xfe", b"a\xff"),
            (b"\xff\xff", b"\0"),
        ] {
            assert_eq!(after_all(prefix), end);
        }
    }

    #[test]
    fn each_page_begins_after_the_last_one_or_nothing_is_asked_for_any_more() {
        let page = |keys: &[&str]| -> Vec<Pair> {
            let pair = |key: &&str| Pair { key: key.as_bytes().to_vec(), value: Vec::new(), mod_revision: 1 };
            keys.iter().map(pair).collect()
        };
        let second = next(b"/s/", &page(&["/s/a", "/s/b"])).expect("a page").expect("keys");
        assert_eq!(second, b"/s/b\0");
        assert!(next(&second, &page(&["/s/a", "/s/b"])).is_err(), "the same keys again");
        assert_eq!(next(&second, &page(&["/s/c"])).expect("a page"), Some(b"/s/c\0".to_vec()));
        assert_eq!(next(&second, &[]).expect("a page"), None);
    }

    // Answers of etcd 3.4.23.
    #[test]
    fn what_a_server_says_is_read() {
        let range: Range = read(
            br#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"2","raft_term":"2"},"kvs":[{"key":"L3MvYQ==","create_revision":"2","mod_revision":"2","version":"1","value":"MTI3LjAuMC4xOjE="}],"count":"1"}"#,
        )
        .expect("a range");
        assert_eq!((range.header.revision, range.more), (2, false));
        assert_eq!(
            (range.kvs[0].key.as_slice(), range.kvs[0].value.as_slice()),
            (&b"/s/a"[..], &b"127.0.0.1:1"[..])
        );
        let line: Line = read(
            br#"{"result":{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"4","raft_term":"2"},"events":[{"type":"DELETE","kv":{"key":"L3MvYQ==","mod_revision":"4"}}]}}"#,
        )
        .expect("a line");
        let mut known = Known { revision: 2, keys: BTreeMap::from([(b"/s/a".to_vec(), Ok(None))]) };
        known.change(line.result.expect("a result")).expect("a change");
        assert_eq!((known.revision, known.keys.len()), (4, 0));
        let line: Line = read(
            br#"{"result":{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","raft_term":"2"},"canceled":true,"compact_revision":"4"}}"#,
        )
        .expect("a line");
        assert_eq!(line.result.expect("a result").compact_revision, 4);
    }

    #[test]
    fn what_cannot_be_read_is_warned_of_once_and_of_much_only_the_beginning() {
        let known = |pairs: &[(&str, &str)]| {
            let mut known = Known { revision: 1, keys: BTreeMap::new() };
            for (key, value) in pairs {
                let (key, value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
                known.put(Pair { key, value, mod_revision: 1 }).expect("there is room");
            }
            known
        };
        let mut warned = Unread::new();
        let mut newly = |pairs: &[(&str, &str)]| known(pairs).newly_unread(&mut warned).len();
        assert_eq!(newly(&[("a", "10.0.0.1:80"), ("b", "nothing")]), 1);
        assert_eq!(newly(&[("a", "10.0.0.1:80"), ("b", "nothing")]), 0, "all was asked for anew");
        assert_eq!(newly(&[("a", "10.0.0.1:80"), ("b", "{}")]), 1, "it is wrong in another way");
        assert_eq!(newly(&[("b", "10.0.0.1:80")]), 0);
        assert_eq!(newly(&[("b", "nothing")]), 1, "it was right meanwhile");
        let names: Vec<String> = (0..NAMED + 9).map(|n| format!("{n:02}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), "nothing")).collect();
        assert_eq!((newly(&many), newly(&many)), (NAMED, 0));
    }

    #[test]
    fn no_more_keys_are_taken_in_than_any_upstream_has_use_for() {
        let mut known = Known { revision: 1, keys: BTreeMap::new() };
        let pair = |n: usize| Pair { key: n.to_be_bytes().to_vec(), value: b"a:1".to_vec(), mod_revision: 1 };
        for n in 0..MOST {
            known.put(pair(n)).expect("there is room");
        }
        assert!(known.put(pair(0)).is_ok(), "it is known already");
        assert!(known.put(pair(MOST)).is_err());
    }
}
