//! Where passwords are hashed: beside the threads that serve requests, so many at a time, with so many waiting, and
//! not all of them for one client.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task;
use zeroize::Zeroizing;

use super::password::PasswordHash;
use crate::identity::Unavailable;
use crate::identity::places::{Busy, Places};

/// The part of all places that one client may have.
const SHARE: usize = 8;

/// A number of places to hash at, and of places to wait at.
#[derive(Debug)]
pub(super) struct Bench {
    /// Of those who hash or wait: not all of them for one client, so that who guesses passwords keeps nobody else
    /// waiting for long.
    places: Arc<Places>,
    /// Of those who hash.
    seats: Arc<Semaphore>,
}

impl Bench {
    pub(super) fn new(parallel: usize, queue: usize) -> Self {
        let number = parallel.saturating_add(queue);
        let places = Places::new(number, parallel.max(number / SHARE));
        let seats = Semaphore::new(parallel.min(Semaphore::MAX_PERMITS));
        Self { places: Arc::new(places), seats: Arc::new(seats) }
    }

    /// The first of these hashes that is of the password. Work begun goes on to its end, in its place, also if
    /// nobody waits for it any more: who leaves early and comes again gets no more of the machine.
    pub(super) async fn find(
        &self,
        client: IpAddr,
        password: Zeroizing<Vec<u8>>,
        hashes: Vec<PasswordHash>,
    ) -> Result<Option<usize>, Unavailable> {
        let place = self.places.try_take(client).map_err(|why| match why {
            Busy::Share => busy("the client has too many passwords hashed at a time"),
            Busy::All => busy("more passwords are to be hashed than can be"),
        })?;
        let seat = self.seats.clone().acquire_owned().await;
        let seat = seat.map_err(|_| busy("passwords are hashed no more"))?;
        let work = move || {
            let _taken = (place, seat);
            hashes.iter().position(|hash| hash.is_of(&password))
        };
        task::spawn_blocking(work).await.map_err(|_| busy("passwords cannot be hashed now"))
    }
}

fn busy(reason: &'static str) -> Unavailable {
    Unavailable { reason: reason.into(), retry_after: 1 }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::super::tests::hash;
    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn find(bench: &Arc<Bench>, client: &str) -> impl Future<Output = Result<Option<usize>, Unavailable>> {
        let (bench, client) = (bench.clone(), client.parse().expect("an address"));
        let password = Zeroizing::new(b"right".to_vec());
        async move { bench.find(client, password, vec![hash("wrong"), hash("right")]).await }
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let bench = Arc::new(Bench::new(1, 1));
        let seat = bench.seats.clone().acquire_owned().await.expect("free");
        let (mut one, mut other) = (pin!(find(&bench, "192.0.2.1")), pin!(find(&bench, "192.0.2.2")));
        assert!(poll(one.as_mut()).is_pending() && poll(other.as_mut()).is_pending());
        let third = find(&bench, "192.0.2.3").await.expect_err("no place");
        assert_eq!(third.reason, "more passwords are to be hashed than can be");
        drop(seat);
        assert_eq!((one.await, other.await), (Ok(Some(1)), Ok(Some(1))));
        assert_eq!(find(&bench, "192.0.2.3").await, Ok(Some(1)));
    }

    #[tokio::test]
    async fn a_client_has_a_share_of_the_places() {
        let bench = Arc::new(Bench::new(1, 15));
        let seat = bench.seats.clone().acquire_owned().await.expect("free");
        let (mut one, mut other) = (pin!(find(&bench, "2001:db8::1")), pin!(find(&bench, "2001:db8::2")));
        assert!(poll(one.as_mut()).is_pending() && poll(other.as_mut()).is_pending());
        let third = find(&bench, "2001:db8::3").await.expect_err("has its share");
        assert_eq!(third.reason, "the client has too many passwords hashed at a time");
        let mut neighbour = pin!(find(&bench, "2001:db8:0:1::1"));
        assert!(poll(neighbour.as_mut()).is_pending(), "others have places");
        drop(seat);
        assert_eq!((one.await, other.await, neighbour.await), (Ok(Some(1)), Ok(Some(1)), Ok(Some(1))));
    }

    #[tokio::test]
    async fn who_goes_away_while_waiting_leaves_the_place() {
        let bench = Arc::new(Bench::new(1, 0));
        let seat = bench.seats.clone().acquire_owned().await.expect("free");
        let mut one = Box::pin(find(&bench, "192.0.2.1"));
        assert!(poll(one.as_mut()).is_pending());
        drop(one);
        drop(seat);
        assert_eq!(find(&bench, "192.0.2.2").await, Ok(Some(1)));
    }
}
