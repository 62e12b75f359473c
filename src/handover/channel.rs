//! Messages and sockets between two processes, over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message, in bytes; what is larger is not one of ours.
const LONGEST: u32 = 1 << 30;
/// A byte that carries a socket: there is no sending a socket without one.
const CARRIER: u8 = b's';

/// One end: JSON messages, each after its length in four bytes, and sockets between them.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

/// Our end, and the one for a process that we start.
///
/// # Errors
/// The system has no descriptors left.
pub fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((Channel::new(ours), theirs.into()))
}

impl Channel {
    /// An end over this stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// How long each message may take, in either direction.
    ///
    /// # Errors
    /// `patience` is zero.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        self.stream.set_write_timeout(Some(patience))
    }

    /// The user whose process is at the other end.
    ///
    /// # Errors
    /// The system cannot tell.
    pub fn peer(&self) -> io::Result<rustix::process::Uid> {
        Ok(rustix::net::sockopt::socket_peercred(&self.stream)?.uid)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other end is gone, or takes nothing for too long.
    pub fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, message)?;
        let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length <= LONGEST);
        bytes[..4].copy_from_slice(&length.ok_or(io::ErrorKind::InvalidInput)?.to_be_bytes());
        self.stream.write_all(&bytes)
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// The other end is gone (`UnexpectedEof`), says nothing for too long, or something else.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        (&self.stream).take(length.into()).read_to_end(&mut bytes)?;
        if bytes.len() < length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Sends a copy of a socket.
    ///
    /// # Errors
    /// As for a message.
    pub fn send_socket(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let sockets = [socket];
        ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
        sendmsg(self.stream.as_fd(), &[IoSlice::new(&[CARRIER])], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for a socket.
    ///
    /// # Errors
    /// As for a message; what comes is not a socket.
    pub fn receive_socket(&mut self) -> io::Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut carrier = [0];
        let mut room = [IoSliceMut::new(&mut carrier)];
        let received = recvmsg(self.stream.as_fd(), &mut room, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let socket = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        socket.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn ends() -> (Channel, Channel) {
        let (one, other) = pair().unwrap();
        let ends = (one, Channel::new(other.into()));
        for end in [&ends.0, &ends.1] {
            end.set_patience(Duration::from_secs(20)).unwrap();
        }
        ends
    }

    #[test]
    fn messages_and_sockets_keep_their_order() {
        let (mut one, mut other) = ends();
        let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        one.send(&vec!["a", "b"]).unwrap();
        for listener in &listeners {
            one.send_socket(listener.as_fd()).unwrap();
        }
        one.send(&7).unwrap();
        assert_eq!(other.receive::<Vec<String>>().unwrap(), ["a", "b"]);
        for listener in &listeners {
            let same = TcpListener::from(other.receive_socket().unwrap());
            assert_eq!(same.local_addr().unwrap(), listener.local_addr().unwrap());
        }
        assert_eq!(other.receive::<u8>().unwrap(), 7);
    }

    #[test]
    fn a_received_socket_listens_on_without_the_one_it_was_copied_from() {
        let (mut one, mut other) = ends();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        one.send_socket(listener.as_fd()).unwrap();
        drop(listener);
        let listener = TcpListener::from(other.receive_socket().unwrap());
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
    }

    #[test]
    fn a_long_message_comes_through_whole() {
        let (mut one, mut other) = ends();
        let long = "x".repeat(10 << 20);
        let sent = long.clone();
        let sender = std::thread::spawn(move || one.send(&sent).unwrap());
        assert_eq!(other.receive::<String>().unwrap(), long);
        sender.join().unwrap();
    }

    #[test]
    fn an_end_that_goes_is_noticed_and_so_is_nonsense() {
        let (one, mut other) = ends();
        drop(one);
        assert_eq!(other.receive::<u8>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(other.receive_socket().is_err());
        let (mut one, mut other) = ends();
        one.stream.write_all(b"\xff\xff\xff\xff").unwrap();
        assert_eq!(other.receive::<u8>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (mut one, mut other) = ends();
        one.stream.write_all(b"\0\0\0\x05{").unwrap();
        drop(one);
        assert_eq!(other.receive::<u8>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (mut one, mut other) = ends();
        one.send(&1).unwrap();
        assert_eq!(other.receive_socket().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_end_that_says_nothing_is_not_waited_for() {
        let (one, mut other) = ends();
        other.set_patience(Duration::from_millis(10)).unwrap();
        assert_eq!(other.receive::<u8>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(one);
    }
}
