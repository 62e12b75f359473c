//! HTTP/1.1 over plain sockets: a client and a scripted origin that remembers what it was sent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tollhouse_filters::condition::ValueMatch;
use tollhouse_filters::values::FieldName;

/// Longest wait for a piece of a message.
const PATIENCE: Duration = Duration::from_secs(20);

/// A head as it was sent, and the body.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// The request or status line.
    pub(crate) start: String,
    /// The fields.
    pub(crate) headers: ::http::HeaderMap,
    /// The body, without chunked coding.
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// The status of an answer.
    pub(crate) fn status(&self) -> u16 {
        let code = self.start.split(' ').nth(1).and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("no status in {:?}", self.start))
    }

    /// The target of a request.
    pub(crate) fn target(&self) -> &str {
        self.start.split(' ').nth(1).expect("a request line")
    }

    /// Whether a health check sent this: HTTP/1, or the preface of HTTP/2.
    pub(crate) fn is_probe(&self) -> bool {
        self.header("user-agent").starts_with("tollhouse-health/") || self.start == "PRI * HTTP/2.0"
    }

    /// Whether it is a copy of another request, which comes when it likes.
    pub(crate) fn is_copy(&self) -> bool {
        self.headers.contains_key("x-tollhouse-mirror")
    }

    /// The first line of a field, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// Fields that are not as wanted.
    pub(crate) fn mismatches<'a>(
        &'a self,
        wanted: impl IntoIterator<Item = (&'a FieldName, &'a ValueMatch)>,
    ) -> Vec<String> {
        let name = |name: &FieldName| ::http::HeaderName::from(name.clone());
        wanted
            .into_iter()
            .filter(|(field, value)| !value.matches_field(&self.headers, &name(field)))
            .map(|(field, value)| {
                format!("{field}: wanted {value}, got {:?}", self.header(name(field).as_str()))
            })
            .collect()
    }
}

/// A request; `Connection: close` and, with a body, its length are added.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Message {
    let stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    request_over(stream, method, target, headers, body)
}

/// As [`request`], over a connection that is there.
pub(crate) fn request_over(
    mut stream: impl Read + Write,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Message {
    let mut head = format!("{method} {target} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).expect("a head is sent");
    // A gateway that answers early need not read the rest.
    let _ = stream.write_all(body);
    message(&mut stream, method == "HEAD")
        .unwrap_or_else(|error| panic!("{method} {target}: no answer: {error}"))
}

/// Reads one message to the end of its body.
fn message(stream: &mut impl Read, bodiless: bool) -> io::Result<Message> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        more(stream, &mut bytes)?;
    };
    let mut rest = bytes.split_off(end + 4);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = head.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    let mut headers = ::http::HeaderMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("a line without colon"))?;
        let name = ::http::HeaderName::try_from(name).map_err(io::Error::other)?;
        headers.append(name, value.trim().parse().map_err(io::Error::other)?);
    }
    let length = headers.get("content-length").and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let chunked = headers.contains_key("transfer-encoding");
    let is_answer = start.starts_with("HTTP/");
    match length {
        _ if bodiless || (is_answer && [" 204", " 304"].iter().any(|code| start.contains(code))) => {
            rest.clear()
        }
        Some(length) => {
            while rest.len() < length {
                more(stream, &mut rest)?;
            }
            rest.truncate(length);
        }
        None if chunked => {
            while !rest.windows(5).any(|five| five == b"0\r\n\r\n") {
                more(stream, &mut rest)?;
            }
            rest = unchunked(&rest);
        }
        None if is_answer => {
            stream.read_to_end(&mut rest)?;
        }
        None => {}
    }
    Ok(Message { start, headers, body: rest })
}

fn more(stream: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 16 * 1024];
    match stream.read(&mut piece)? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed early")),
        read => {
            bytes.extend_from_slice(&piece[..read]);
            Ok(())
        }
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&bytes[..end]);
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16).unwrap_or(0);
        let from = end + 2;
        if size == 0 || bytes.len() < from + size + 2 {
            break;
        }
        body.extend_from_slice(&bytes[from..from + size]);
        bytes = &bytes[from + size + 2..];
    }
    body
}

/// An origin that answers 200 to everything and remembers the requests.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Message>>>,
}

impl Origin {
    /// Listens on a port of the system's choice.
    pub(crate) fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&seen);
        // Ends with the process; each connection carries one request.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.set_read_timeout(Some(PATIENCE));
                if let Ok(request) = message(&mut stream, false) {
                    remembered.lock().expect("no panic while locked").push(request);
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\norigin\n";
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
        });
        Origin { address, seen }
    }

    /// The requests since this was last asked.
    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.seen.lock().expect("no panic while locked"))
    }
}
