//! The origin of the load tests: a small HTTP/1.1 server for loopback, a thread for each connection.
//!
//! It says its port on standard output and ends when its standard input does. The last segment of the path
//! says what is answered: `1k`, `100k`, `1m` and `100m` are that many bytes, `slow` is 4 MiB in four seconds, `echo`
//! is the body of the request; everything else is 404. Bodies are read to their end before the answer.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::process::exit;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What is written at once of a large body, and read at once of one that nobody wants.
const PIECE: usize = 256 * 1024;

/// Answers that are the same each time, with their heads.
struct Answers {
    small: Vec<u8>,
    medium: Vec<u8>,
    piece: Vec<u8>,
}

/// What the head of a request says.
#[derive(Default)]
struct Head {
    /// The last segment of the path.
    wanted: Vec<u8>,
    length: u64,
    chunked: bool,
    close: bool,
}

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        exit(0);
    });
    let whole = |size: usize| [head("200 OK", size), vec![b'x'; size]].concat();
    let piece = vec![b'x'; PIECE];
    let answers = Arc::new(Answers { small: whole(1 << 10), medium: whole(100 << 10), piece });
    for stream in listener.incoming() {
        let (stream, answers) = (stream?, answers.clone());
        // A connection that ends or speaks something else is nobody's mistake here: those who wait notice.
        let serve = move || drop(serve(&stream, &answers));
        thread::Builder::new().stack_size(128 << 10).spawn(serve)?;
    }
    Ok(())
}

fn head(status: &str, size: usize) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nServer: origin\r\nContent-Type: application/octet-stream\r\n\
         Cache-Control: max-age=3600\r\nContent-Length: {size}\r\n\r\n"
    )
    .into_bytes()
}

fn serve(mut stream: &TcpStream, answers: &Answers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    let mut line = Vec::with_capacity(256);
    while let Some(request) = read_head(&mut reader, &mut line)? {
        let echo = request.wanted == b"echo";
        let mut body = Vec::new();
        read_body(&mut reader, &request, &mut |piece| {
            if echo {
                body.extend_from_slice(piece)
            }
        })?;
        match request.wanted.as_slice() {
            b"1k" => stream.write_all(&answers.small)?,
            b"100k" => stream.write_all(&answers.medium)?,
            b"1m" => large(stream, 4, Duration::ZERO, answers)?,
            b"100m" => large(stream, 400, Duration::ZERO, answers)?,
            b"slow" => large(stream, 16, Duration::from_millis(250), answers)?,
            b"echo" => stream.write_all(&[head("200 OK", body.len()), body].concat())?,
            _ => stream.write_all(&head("404 Not Found", 0))?,
        }
        if request.close {
            break;
        }
    }
    Ok(())
}

/// An answer of so many pieces, with a pause after each.
fn large(mut stream: &TcpStream, pieces: usize, pause: Duration, answers: &Answers) -> io::Result<()> {
    stream.write_all(&head("200 OK", pieces * PIECE))?;
    for _ in 0..pieces {
        stream.write_all(&answers.piece)?;
        thread::sleep(pause);
    }
    Ok(())
}

/// The head of the next request, if there is one.
fn read_head(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<Head>> {
    let mut head = Head::default();
    if !read_line(reader, line)? {
        return Ok(None);
    }
    let path = line.split(|&byte| byte == b' ').nth(1).ok_or(ErrorKind::InvalidData)?;
    let path = path.split(|&byte| byte == b'?').next().unwrap_or(path);
    head.wanted = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path).to_vec();
    loop {
        if !read_line(reader, line)? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if line.is_empty() {
            return Ok(Some(head));
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or(ErrorKind::InvalidData)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            head.length = number(value, 10)?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            head.chunked = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            head.close = value.eq_ignore_ascii_case(b"close");
        }
    }
}

/// Reads a line without its end; false at the end of the connection.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    reader.read_until(b'\n', line)?;
    let some = line.ends_with(b"\n");
    line.truncate(line.trim_ascii_end().len());
    Ok(some)
}

fn number(text: &[u8], radix: u32) -> io::Result<u64> {
    let text = std::str::from_utf8(text).map_err(Error::other)?;
    u64::from_str_radix(text, radix).map_err(Error::other)
}

fn read_body(reader: &mut impl BufRead, head: &Head, taker: &mut impl FnMut(&[u8])) -> io::Result<()> {
    if !head.chunked {
        return take(reader, head.length, taker);
    }
    let mut line = Vec::new();
    loop {
        read_line(reader, &mut line)?;
        let size = number(line.split(|&byte| byte == b';').next().unwrap_or_default(), 16)?;
        take(reader, size, taker)?;
        read_line(reader, &mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}

/// Reads this many bytes.
fn take(reader: &mut impl BufRead, mut left: u64, taker: &mut impl FnMut(&[u8])) -> io::Result<()> {
    while left > 0 {
        let held = reader.fill_buf()?;
        if held.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let some = held.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        taker(&held[..some]);
        reader.consume(some);
        left -= some as u64;
    }
    Ok(())
}
