//! Taking the place of another process, from the side of the new one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tollhouse_filters::world::{Revocations, State};

use super::StartError;
use super::succession::{Memory, ORPHANED, Offer, Step, TAKE_OVER};
use crate::config::Address;
use crate::handover::{Beside, Channel, Place, PlaceError, Sockets};
use crate::snapshot::{ListenerPlan, Snapshot};
use crate::tls::TicketKeys;

/// How long each message of the process before this one may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts this program once more, and leaves it alone: what is nobody's child becomes the service manager's. When
/// systemd stops a service, it waits for a main process only if that was its child when it became the main one.
pub(super) fn orphan(path: &Path) -> Result<(), StartError> {
    let program = std::env::current_exe();
    let started = program.and_then(|program| {
        Command::new(program).args(["run", TAKE_OVER, ORPHANED, "--config"]).arg(path).spawn()
    });
    started
        .map(drop)
        .map_err(|error| StartError::Runtime(format!("cannot start this program once more: {error}")))
}

/// The process before this one.
pub(super) struct Predecessor {
    channel: Channel,
    /// Its sockets; those that are not taken are closed with this.
    pub(super) sockets: Sockets,
    tickets: Vec<(String, TicketKeys)>,
    /// Its upgrade socket, unless its version is too old to tell.
    place: Option<Place>,
}

impl Predecessor {
    /// Meets it on standard input.
    ///
    /// # Errors
    /// Nobody is there, or it went away.
    pub(super) fn meet() -> Result<Self, StartError> {
        Self::greet().map_err(|error| {
            StartError::Runtime(format!("there is no process to take over from on standard input: {error}"))
        })
    }

    fn greet() -> io::Result<Self> {
        let stream = io::stdin().as_fd().try_clone_to_owned()?;
        // Nothing else may read from it, or keep it open.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        let mut channel = Channel::new(UnixStream::from(stream));
        channel.set_patience(PATIENCE)?;
        channel.send(&Step::Begun { pid: std::process::id() })?;
        let offer: Offer = channel.receive()?;
        let sockets = offer.sockets.into_iter().map(|name| Ok((name, channel.receive_socket()?)));
        let sockets = sockets.collect::<io::Result<_>>()?;
        Ok(Self { channel, sockets, tickets: offer.tickets, place: offer.place.map(Place::at) })
    }

    /// Listens beside a place, to take it over once this process serves.
    ///
    /// # Errors
    /// Another gateway than this one listens there, or as for [`Place::beside`].
    pub(super) fn beside(&self, place: &Place) -> Result<Beside, PlaceError> {
        if self.place.as_ref().is_some_and(|own| !own.is_same(place)) {
            place.check_free()?;
        }
        place.beside()
    }

    /// Goes on with its keys of session tickets; of several for one listener, the last ones count.
    pub(super) fn resume(&mut self, snapshot: &Snapshot) {
        for (place, keys) in self.tickets.drain(..) {
            let is_at = |address: &Address| address.to_string() == place;
            let is_here =
                |plan: &&ListenerPlan| *plan.name == *place || plan.fixed_address().is_some_and(is_at);
            let plan = snapshot.listeners.iter().find(is_here);
            if let Some(tls) = plan.and_then(|plan| plan.tls.as_deref()) {
                tls.resume(keys);
            }
        }
    }

    /// Says that all is prepared, and takes over what its filters remember.
    ///
    /// # Errors
    /// It went away.
    pub(super) fn remember(
        &mut self,
        state: &dyn State,
        revocations: &Revocations,
    ) -> Result<(), StartError> {
        let mut remember = || {
            self.channel.send(&Step::Prepared)?;
            loop {
                let memory: Memory = self.channel.receive()?;
                state.import(memory.entries);
                revocations.import(memory.revocations);
                if memory.last {
                    return io::Result::Ok(());
                }
            }
        };
        remember()
            .map_err(|error| StartError::Runtime(format!("the process before this one is gone: {error}")))
    }

    /// Says that this process serves: the other one stops.
    ///
    /// # Errors
    /// It went away.
    pub(super) fn relieve(&mut self) -> io::Result<()> {
        self.channel.send(&Step::Ready)
    }

    /// Says why this process will not serve.
    pub(super) fn disappoint(&mut self, error: &StartError) {
        let configuration = matches!(error, StartError::Document(_));
        let _ = self.channel.send(&Step::Failed { reason: error.to_string(), configuration });
    }
}
