//! A journal that gateways share: what one of them says, all others read, in one order (a stream of Redis).
//!
//! Nobody misses anything unnoticed: who was away reads on from where it was, and where that is no more in it,
//! or the server is another one since and may have lost its end, it is told that there is a gap.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Value};
use tokio::time::{sleep, timeout};

use super::keeper::{CONNECT, Driver, Pause};
use super::{Reason, RedisStore, Shared};

/// Entries that a journal has at least before its oldest are dropped.
const LENGTH: usize = 10_000;
/// Entries that are read at once.
const BATCH: usize = 100;
/// How long a read waits for the next entry, in milliseconds.
const BLOCK: u64 = 1000;
/// Entries that wait for the store to be back.
const MOST_LATE: usize = 1000;
/// The fields of an entry.
const BY: &[u8] = b"by";
const SAYS: &[u8] = b"says";

/// This process among those that write.
static OWN: LazyLock<String> = LazyLock::new(|| format!("{:032x}", fastrand::u128(..)));

/// A journal in a store.
pub struct Journal {
    shared: Arc<Shared>,
    key: String,
    /// What could not be said yet.
    late: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

/// Where a reader is: after this entry, on this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    server: String,
    entry: String,
}

/// What a reader learns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Something may have been said before that is not known.
    pub gap: bool,
    /// What others said, in order.
    pub said: Vec<Vec<u8>>,
}

/// Reads a journal, as long as it is there.
pub struct Reader {
    journal: Arc<Journal>,
    place: Option<Place>,
    line: Option<Line>,
    pause: Pause,
    /// Why it last could not read.
    away: Option<Reason>,
}

/// A connection of a reader's own, on which it waits.
struct Line {
    connection: MultiplexedConnection,
    _driver: Driver,
}

impl Place {
    /// A place as it was written down.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (server, entry) = text.trim().split_once(' ')?;
        Some(Self { server: server.to_owned(), entry: entry.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.server, self.entry)
    }
}

impl RedisStore {
    /// The journal of this name.
    #[must_use]
    pub fn journal(&self, name: &str) -> Journal {
        let shared = self.shared.clone();
        let key = format!("{}:journal:{name}", shared.options.prefix);
        Journal { shared, key, late: Arc::default() }
    }
}

impl Journal {
    /// The same journal in the place of another one, which also says what that one could not say yet.
    #[must_use]
    pub fn in_place_of(self, other: &Self) -> Self {
        Self { late: other.late.clone(), ..self }
    }

    /// Says something to all others, within the store's deadline; false if they will know only once the store is
    /// back. An empty saying tells them that there is a gap.
    pub async fn say(&self, what: Vec<u8>) -> bool {
        if let Some(link) = self.shared.link.load_full()
            && let Ok(Ok(_)) = timeout(self.shared.options.timeout.get(), link.ask(&self.saying(&what))).await
        {
            return true;
        }
        let mut late = self.late.lock();
        if late.len() >= MOST_LATE {
            // Others take it that they missed something, as they did.
            late.clear();
            late.push_back(Vec::new());
        }
        late.push_back(what);
        false
    }

    /// How many sayings wait for the store.
    #[must_use]
    pub fn late(&self) -> usize {
        self.late.lock().len()
    }

    /// Reads it from this place on. Without one, or if that is no more, the first news is a gap.
    #[must_use]
    pub fn read(self: &Arc<Self>, place: Option<Place>) -> Reader {
        Reader { journal: self.clone(), place, line: None, pause: Pause::default(), away: None }
    }

    fn saying(&self, what: &[u8]) -> Cmd {
        let mut command = redis::cmd("XADD");
        command.arg(&self.key).arg("MAXLEN").arg("~").arg(LENGTH).arg("*");
        command.arg(BY).arg(&*OWN).arg(SAYS).arg(what);
        command
    }

    fn reading(&self, after: &str) -> Cmd {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK).arg("STREAMS").arg(&self.key).arg(after);
        command
    }

    fn is_there(&self, entry: &str) -> Cmd {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.key).arg(entry).arg(entry);
        command
    }

    fn since(&self, entry: &str) -> Cmd {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.key).arg(entry).arg("+");
        command
    }

    fn last(&self) -> Cmd {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        command
    }
}

impl Reader {
    /// Where it is, once it has been connected.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Whether it reads.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.line.is_some()
    }

    /// The next news, however long that takes; none after an attempt to connect that failed.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            let before = self.place.clone();
            match self.look().await {
                Ok(news) if !news.gap && self.place == before => {}
                Ok(news) => return Some(news),
                Err(reason) => {
                    self.line = None;
                    self.report(Some(reason));
                    sleep(self.pause.next()).await;
                    return None;
                }
            }
        }
    }

    async fn look(&mut self) -> Result<News, Reason> {
        let (Some(line), Some(place)) = (&mut self.line, &mut self.place) else {
            return self.connect().await;
        };
        self.journal.say_late(line).await?;
        let found = entries(&line.ask(&self.journal.reading(&place.entry)).await?).ok_or(Reason::Nonsense)?;
        let Some(last) = found.last() else { return Ok(News::default()) };
        // The oldest leave first: while this one is there, none of those after it was missed.
        let before = line.ask(&self.journal.is_there(&place.entry)).await?;
        place.entry.clone_from(&last.id);
        Ok(News { gap: is_empty(&before), said: of_others(found) })
    }

    /// Connects, and finds out whether it can read on.
    async fn connect(&mut self) -> Result<News, Reason> {
        let connected = timeout(CONNECT, self.journal.shared.target.connect()).await;
        let (connection, driver) = connected.map_err(|_| Reason::Slow(CONNECT))??;
        let mut line = Line { connection, _driver: Driver(tokio::spawn(driver)) };
        let server = line.server().await?;
        let goes_on = match &self.place {
            Some(place) if place.server == server && !server.is_empty() => {
                !is_empty(&line.ask(&self.journal.is_there(&place.entry)).await?)
            }
            _ => false,
        };
        let mut news = News { gap: !goes_on, said: Vec::new() };
        if !goes_on {
            let last = listed(&line.ask(&self.journal.last()).await?).ok_or(Reason::Nonsense)?.pop();
            let mut entry = match last {
                Some(last) => last.id,
                // An entry to go on from, which is gone when the server loses what it has.
                None => text(&line.ask(&self.journal.anchor()).await?).ok_or(Reason::Nonsense)?,
            };
            if let Some(place) = &self.place {
                // What was said since is news all the same, though something between may be lost.
                let from = line.ask(&self.journal.since(&place.entry)).await?;
                let mut since = listed(&from).ok_or(Reason::Nonsense)?;
                since.retain(|entry| entry.id != place.entry);
                if let Some(last) = since.last() {
                    entry.clone_from(&last.id);
                }
                news.said = of_others(since);
            }
            self.place = Some(Place { server, entry });
        }
        self.line = Some(line);
        self.report(None);
        Ok(news)
    }

    /// Logs when it begins or ceases to read.
    fn report(&mut self, reason: Option<Reason>) {
        let store = &*self.journal.shared.name;
        match (&self.away, &reason) {
            (None, Some(reason)) => {
                log::warn!(store = store; "what other gateways say does not arrive: {reason}")
            }
            (Some(_), None) => log::info!(store = store; "what other gateways say arrives again"),
            _ => {}
        }
        if reason.is_none() {
            self.pause = Pause::default();
        }
        self.away = reason;
    }
}

impl Journal {
    fn anchor(&self) -> Cmd {
        let mut command = redis::cmd("XADD");
        command.arg(&self.key).arg("*").arg(BY).arg(&*OWN);
        command
    }

    /// Says what could not be said before.
    async fn say_late(&self, line: &mut Line) -> Result<(), Reason> {
        loop {
            let Some(first) = self.late.lock().front().cloned() else { return Ok(()) };
            line.ask(&self.saying(&first)).await?;
            self.late.lock().pop_front_if(|known| *known == first);
        }
    }
}

impl Line {
    async fn ask(&mut self, command: &Cmd) -> Result<Value, Reason> {
        let limit = CONNECT + Duration::from_millis(BLOCK);
        let answer = timeout(limit, self.connection.req_packed_command(command)).await;
        let answer = answer.map_err(|_| Reason::Slow(limit))?;
        Ok(answer.and_then(Value::extract_error)?)
    }

    /// What the server calls itself since its start; empty if it does not say.
    async fn server(&mut self) -> Result<String, Reason> {
        let mut command = redis::cmd("INFO");
        command.arg("server");
        let told = match self.ask(&command).await {
            Ok(told) => text(&told).unwrap_or_default(),
            Err(Reason::Forbidden) => String::new(),
            Err(reason) => return Err(reason),
        };
        let run = told.lines().find_map(|line| line.trim().strip_prefix("run_id:"));
        Ok(run.unwrap_or_default().to_owned())
    }
}

/// An entry, as far as it is understood.
struct Entry {
    id: String,
    by: Vec<u8>,
    /// None in one that is only there to go on from.
    says: Option<Vec<u8>>,
}

/// What others said.
fn of_others(entries: Vec<Entry>) -> Vec<Vec<u8>> {
    let others = entries.into_iter().filter(|entry| entry.by != OWN.as_bytes());
    others.filter_map(|entry| entry.says).collect()
}

fn is_empty(answer: &Value) -> bool {
    matches!(answer, Value::Nil) || matches!(answer, Value::Array(list) if list.is_empty())
}

/// What `XREAD` of one journal answers.
fn entries(answer: &Value) -> Option<Vec<Entry>> {
    match answer {
        Value::Nil => Some(Vec::new()),
        Value::Array(streams) => match &streams[..] {
            [Value::Array(stream)] => listed(stream.get(1)?),
            _ => None,
        },
        _ => None,
    }
}

/// What `XRANGE` answers.
fn listed(answer: &Value) -> Option<Vec<Entry>> {
    let Value::Array(list) = answer else { return None };
    list.iter().map(entry).collect()
}

fn entry(value: &Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let [id, Value::Array(fields)] = &parts[..] else { return None };
    let field = |wanted: &[u8]| {
        let mut pairs = fields.chunks_exact(2);
        let pair = pairs.find(|pair| bytes(&pair[0]) == Some(wanted))?;
        bytes(&pair[1]).map(<[u8]>::to_vec)
    };
    Some(Entry { id: text(id)?, by: field(BY).unwrap_or_default(), says: field(SAYS) })
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    bytes(value).and_then(|bytes| str::from_utf8(bytes).ok()).map(str::to_owned)
}
