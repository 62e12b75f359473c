//! Places to work at, of which each client may have a part: who asks for more of them waits for itself, and keeps nobody
//! else waiting.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of places, and who has them.
#[derive(Debug)]
pub(super) struct Places {
    number: usize,
    /// Those that one client may have at a time.
    share: usize,
    all: Arc<Semaphore>,
    /// The places of each client that has one or waits for one.
    clients: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// A place, for as long as it is held. What comes first is given back first.
#[derive(Debug)]
pub(super) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_client: OwnedSemaphorePermit,
    _client: Client,
}

/// Why there is no place now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    /// The client has as many as it may have.
    Share,
    /// All are taken.
    All,
}

/// A client that has a place or waits for one.
#[derive(Debug)]
struct Client {
    places: Arc<Places>,
    address: IpAddr,
    /// Taken at the end only.
    own: Option<Arc<Semaphore>>,
}

impl Places {
    /// So many places, of which one client may have `share` at a time.
    pub(super) fn new(number: usize, share: usize) -> Self {
        let number = number.min(Semaphore::MAX_PERMITS);
        let all = Arc::new(Semaphore::new(number));
        Self { number, share: share.min(number), all, clients: Mutex::default() }
    }

    /// A place for this client, as soon as there is one: first of its own, then of all. So of each client only so many
    /// wait with the others as it may have places.
    pub(super) async fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let client = self.client(address);
        let of_client = client.own.clone()?.acquire_owned().await.ok()?;
        let of_all = self.all.clone().acquire_owned().await.ok()?;
        Some(Place { _of_all: of_all, _of_client: of_client, _client: client })
    }

    /// A place for this client, if there is one now.
    pub(super) fn try_take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Busy> {
        let client = self.client(address);
        let of_client = client.own.clone().and_then(|own| own.try_acquire_owned().ok()).ok_or(Busy::Share)?;
        let of_all = self.all.clone().try_acquire_owned().map_err(|_| Busy::All)?;
        Ok(Place { _of_all: of_all, _of_client: of_client, _client: client })
    }

    fn client(self: &Arc<Self>, address: IpAddr) -> Client {
        let address = neighbourhood(address);
        // Over a Unix socket, all clients are one.
        let share = if address.is_unspecified() { self.number } else { self.share };
        let own =
            self.clients.lock().entry(address).or_insert_with(|| Arc::new(Semaphore::new(share))).clone();
        Client { places: self.clone(), address, own: Some(own) }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut clients = self.places.clients.lock();
        self.own = None;
        if clients.get(&self.address).is_some_and(|own| Arc::strong_count(own) == 1) {
            clients.remove(&self.address);
        }
    }
}

/// Who has one IPv6 address has all of its /64.
fn neighbourhood(address: IpAddr) -> IpAddr {
    const NETWORK: u128 = !0 << 64;
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & NETWORK).into()),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn a_client_waits_for_its_own_places_and_others_for_none_of_them() {
        let places = Arc::new(Places::new(4, 2));
        let mut first = vec![places.take(at("192.0.2.1")).await, places.take(at("192.0.2.1")).await];
        let mut third = Box::pin(places.take(at("192.0.2.1")));
        assert!((&mut third).now_or_never().is_none(), "it has its share");
        let others = [places.take(at("192.0.2.2")).await, places.take(at("192.0.2.3")).await];
        assert!(others.iter().all(Option::is_some));
        let mut fifth = Box::pin(places.take(at("192.0.2.4")));
        assert!((&mut fifth).now_or_never().is_none(), "all are taken");
        drop(first.pop());
        assert!((&mut third).now_or_never().is_none(), "who waits for the places of all was there before");
        assert!(fifth.await.is_some());
        assert!(third.await.is_some());
    }

    #[tokio::test]
    async fn a_network_of_ipv6_is_one_client_and_a_unix_socket_is_many() {
        let places = Arc::new(Places::new(4, 1));
        let one = places.take(at("2001:db8::1")).await;
        assert!(places.take(at("2001:db8::2")).now_or_never().is_none());
        assert!(places.take(at("2001:db8:0:1::1")).now_or_never().is_some());
        drop(one);
        let socket = [places.take(at("::")).await, places.take(at("::")).await, places.take(at("::")).await];
        assert!(socket.iter().all(Option::is_some));
    }

    #[tokio::test]
    async fn who_has_gone_is_forgotten() {
        let places = Arc::new(Places::new(1, 1));
        let one = places.take(at("192.0.2.1")).await;
        let (mut same, mut other) =
            (Box::pin(places.take(at("192.0.2.1"))), Box::pin(places.take(at("192.0.2.2"))));
        assert!((&mut same).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        drop((same, other));
        assert_eq!(places.clients.lock().len(), 1);
        drop(one);
        assert!(places.clients.lock().is_empty());
    }

    #[test]
    fn who_does_not_wait_is_told_whose_places_are_taken() {
        let places = Arc::new(Places::new(2, 1));
        let one = places.try_take(at("192.0.2.1")).expect("free");
        assert_eq!(places.try_take(at("192.0.2.1")).expect_err("has its share"), Busy::Share);
        let other = places.try_take(at("192.0.2.2")).expect("free");
        assert_eq!(places.try_take(at("192.0.2.3")).expect_err("none is left"), Busy::All);
        drop(one);
        let third = places.try_take(at("192.0.2.3")).expect("free again");
        drop((other, third));
        assert!(places.clients.lock().is_empty(), "who was refused is forgotten, too");
    }

    #[test]
    fn there_may_be_more_places_than_can_be_counted() {
        let places = Arc::new(Places::new(usize::MAX, usize::MAX));
        assert!(places.try_take(at("192.0.2.1")).is_ok());
    }
}
