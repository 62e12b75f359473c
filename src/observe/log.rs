//! The process's own log: lines on standard error, one event each, that no request can forge or flood.

use std::env;
use std::fmt;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use env_logger::Builder;
use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{LevelFilter, Record};

use super::timestamp::Timestamp;

/// What a client, or an upstream by answering badly, can make Pingora say as often as it likes. It stays out of the log
/// unless `TOLLHOUSE_LOG` names Pingora or asks for `debug`. The access log has what became a request
/// and what could not become one. From Pingora 0.9.1's source:
const QUIET: [(&str, LevelFilter); 7] = [
    // Start and stop in its own words; ours are enough.
    ("pingora_core", LevelFilter::Warn),
    // "Fail to proxy: ..." at error level, and warnings for each retry and each broken body.
    ("pingora_proxy", LevelFilter::Off),
    // "HTTP server fails to read from downstream", "H2 handshake error".
    ("pingora_core::apps", LevelFilter::Off),
    // "Downstream handshake error from ..." for each port scan of a TLS listener.
    ("pingora_core::services::listening", LevelFilter::Off),
    // "Peer sent more data than expected", "invalid content-length header value", "H2 fd ... ping timeout".
    ("pingora_core::protocols::http", LevelFilter::Off),
    // "TLS shutdown failed".
    ("pingora_core::protocols::tls", LevelFilter::Off),
    // Alerts sent and received.
    ("rustls", LevelFilter::Error),
];

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts the log at this level, or as `TOLLHOUSE_LOG`, else `RUST_LOG`, says (`info`, `debug`, `tollhouse=debug,h2=warn`),
/// and logs panics. Does nothing more when a log was started before.
pub fn init(default: LevelFilter) {
    let spec = env::var("TOLLHOUSE_LOG").or_else(|_| env::var("RUST_LOG")).unwrap_or_default();
    if builder(&spec, default).try_init().is_ok() {
        panic::set_hook(Box::new(on_panic));
    }
}

/// Panics since the start; each is a bug.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn builder(spec: &str, default: LevelFilter) -> Builder {
    let mut builder = Builder::new();
    builder.filter_level(default);
    let overall = overall_level(spec).unwrap_or(default);
    if !spec.contains("pingora") && overall < LevelFilter::Debug {
        for (target, level) in QUIET {
            // Of two that name a target, the one that says more of its name counts.
            builder.filter_module(target, level.min(overall));
        }
    }
    builder.parse_filters(spec);
    builder.format(|line, record| write_line(line, record, SystemTime::now()));
    builder
}

/// The level that the specification gives to everything it does not name.
fn overall_level(spec: &str) -> Option<LevelFilter> {
    spec.split('/').next()?.split(',').filter_map(|part| part.trim().parse().ok()).next_back()
}

fn on_panic(info: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        log::error!(place = place, thread = thread.name().unwrap_or("?"), backtrace:% = backtrace; "panic: {message}");
    } else {
        log::error!(place = place, thread = thread.name().unwrap_or("?"); "panic: {message}");
    }
}

fn write_line(line: &mut dyn Write, record: &Record<'_>, now: SystemTime) -> io::Result<()> {
    write!(line, "{} {:<5} ", Timestamp(now), record.level())?;
    write!(Escaping(line), "{}", record.args())?;
    // Writing to the line's buffer cannot fail, so there is no error to pass on.
    let _ = record.key_values().visit(&mut Pairs(line));
    writeln!(line)
}

/// Lets no control character through: a line break in a message would forge a line.
struct Escaping<'a>(&'a mut dyn Write);

impl Write for Escaping<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for chunk in bytes.utf8_chunks() {
            for part in chunk.valid().split_inclusive(is_unsafe) {
                let last = part.chars().next_back().filter(|last| is_unsafe(*last));
                let plain = &part[..part.len() - last.map_or(0, char::len_utf8)];
                self.0.write_all(plain.as_bytes())?;
                if let Some(last) = last {
                    write!(self.0, "{}", last.escape_default())?;
                }
            }
            if !chunk.invalid().is_empty() {
                write!(self.0, "\u{FFFD}")?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Control characters, and the separators and direction marks that viewers take for more than text.
pub(super) fn is_unsafe(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Writes ` key=value` for each fact; values that are not one plain word are quoted.
struct Pairs<'a>(&'a mut dyn Write);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
        let text = value.to_string();
        write!(Escaping(self.0), " {key}=").map_err(KvError::boxed)?;
        self.write_value(&text).map_err(KvError::boxed)
    }
}

impl Pairs<'_> {
    fn write_value(&mut self, text: &str) -> io::Result<()> {
        let plain = |character: char| {
            !character.is_whitespace() && !is_unsafe(character) && !"\"=".contains(character)
        };
        if !text.is_empty() && text.chars().all(plain) {
            return self.0.write_all(text.as_bytes());
        }
        write!(Escaping(self.0), "{}", Quoted(text))
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::Level;

    use super::*;

    fn line(message: &str, facts: &[(&str, &str)]) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123);
        let mut written = Vec::new();
        let args = format_args!("{message}");
        let record = Record::builder().level(Level::Warn).args(args).key_values(&facts).build();
        write_line(&mut written, &record, now).unwrap();
        String::from_utf8(written).unwrap()
    }

    fn shown(spec: &str, target: &str, level: Level) -> bool {
        let record = Record::builder().target(target).level(level).build();
        builder(spec, LevelFilter::Info).build().matches(&record)
    }

    #[test]
    fn a_line_has_time_level_message_and_facts() {
        let text = line("reload refused", &[("file", "a.yaml"), ("errors", "3")]);
        assert_eq!(text, "2026-01-01T00:00:00.123Z WARN  reload refused file=a.yaml errors=3\n");
    }

    #[test]
    fn values_that_are_not_one_word_are_quoted() {
        assert_eq!(
            line("m", &[("a", "two words"), ("b", ""), ("c", "x=\"y\"")]),
            "2026-01-01T00:00:00.123Z WARN  m a=\"two words\" b=\"\" c=\"x=\\\"y\\\"\"\n"
        );
    }

    #[test]
    fn nothing_logged_can_forge_a_line() {
        let text = line("a\r\nb\u{1b}[31m\u{2028}é", &[("k", "v\n2026 ERROR forged"), ("x", "\u{202e}abc")]);
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.trim_end().chars().any(is_unsafe), "{text}");
        assert!(text.contains("a\\r\\nb\\u{1b}[31m\\u{2028}é"), "{text}");
    }

    #[test]
    fn clients_cannot_make_pingora_fill_the_log() {
        for target in [
            "pingora_proxy",
            "pingora_proxy::proxy_h1",
            "pingora_core::apps::http_app",
            "pingora_core::apps",
            "pingora_core::services::listening",
            "pingora_core::protocols::http::v1::common",
            "pingora_core::protocols::tls::rustls::server",
        ] {
            assert!(!shown("", target, Level::Error), "{target}");
            assert!(!shown("info", target, Level::Error), "{target}");
        }
        assert!(!shown("", "rustls::common_state", Level::Warn));
    }

    #[test]
    fn what_an_operator_must_know_is_shown() {
        assert!(shown("", "pingora_core::server", Level::Error));
        assert!(shown("", "pingora_core::connectors::l4", Level::Warn));
        assert!(shown("", "tollhouse::server", Level::Info));
        assert!(!shown("", "pingora_core::server", Level::Info));
        assert!(!shown("", "tollhouse::server", Level::Debug));
    }

    #[test]
    fn a_level_holds_for_whom_it_does_not_name() {
        assert!(!shown("error", "pingora_core::server", Level::Warn));
        assert!(shown("error", "pingora_core::server", Level::Error));
        assert!(!shown("error,tollhouse=debug", "pingora_core::server", Level::Warn));
        for target in ["rustls::common_state", "pingora_core::server", "tollhouse::server"] {
            assert!(!shown("off", target, Level::Error), "{target}");
        }
        assert!(shown("warn", "pingora_core::server", Level::Warn));
    }

    #[test]
    fn pingora_is_heard_when_asked_for() {
        assert!(shown("debug", "pingora_proxy", Level::Error));
        assert!(shown("pingora_proxy=warn", "pingora_proxy::proxy_h1", Level::Warn));
        assert!(shown("info,pingora_core=debug", "pingora_core::apps", Level::Debug));
        assert!(!shown("tollhouse=debug", "pingora_proxy", Level::Error), "only ours was asked for");
        assert!(shown("tollhouse=debug", "tollhouse::proxy", Level::Debug));
    }

    #[test]
    fn a_panic_is_counted() {
        let before = panics();
        let previous = panic::take_hook();
        panic::set_hook(Box::new(on_panic));
        let unwound = panic::catch_unwind(|| panic!("on purpose"));
        panic::set_hook(previous);
        assert!(unwound.is_err());
        assert!(panics() > before);
    }
}
