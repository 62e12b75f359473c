//! What a process tells others when it begins to serve: the one before it, the service manager, and those who
//! will ask it to be upgraded.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::takeover::Predecessor;
use super::upgrade::Upgrades;
use super::{Origin, StartError, aside};
use crate::config::Server;
use crate::door::Opened;
use crate::handover::{Beside, Place, PlaceError};

/// A process that is about to serve.
pub(super) struct Lifetime {
    pub(super) origin: Origin,
    pub(super) before: Option<Predecessor>,
    pub(super) upgrades: Arc<Upgrades>,
}

/// The upgrade socket.
type Post = (Place, Socket);

enum Socket {
    /// In its place.
    There(UnixListener),
    /// Beside it, where the process before this one still has its own.
    Beside(Beside),
}

impl Socket {
    fn taken(self) -> Result<UnixListener, PlaceError> {
        match self {
            Self::There(listener) => Ok(listener),
            Self::Beside(beside) => beside.take(),
        }
    }
}

impl Lifetime {
    /// Waits, as a task, for the door to open; gives what the door has to call then.
    ///
    /// # Errors
    /// The upgrade socket that the document names cannot be opened.
    pub(super) fn begin(mut self, server: &Server, runtime: &Handle) -> Result<Opened, StartError> {
        let post = self.post(server).inspect_err(|error| {
            if let Some(before) = &mut self.before {
                before.disappoint(error);
            }
        })?;
        let (tell, opened) = oneshot::channel();
        runtime.spawn(async move {
            if let Ok(opened) = opened.await {
                self.serve(opened, post).await;
            }
        });
        Ok(Box::new(move |opened| drop(tell.send(opened))))
    }

    fn post(&self, server: &Server) -> Result<Option<Post>, StartError> {
        if matches!(self.origin, Origin::Sole | Origin::Child) {
            return Ok(None);
        }
        let named = server.upgrade_socket.as_ref().map(|socket| Place::at(socket.path().into()));
        let must = named.is_some();
        let Some(place) = named.or_else(Place::usual) else {
            log::info!(
                "this process cannot be upgraded: `server.upgrade_socket` is not set, \
                 and neither is `RUNTIME_DIRECTORY` or `XDG_RUNTIME_DIR`"
            );
            return Ok(None);
        };
        let socket = match &self.before {
            // What is wrong with it is to show while the process before this one serves.
            Some(before) => before.beside(&place).map(Socket::Beside),
            None => place.listen().map(Socket::There),
        };
        match socket {
            Ok(socket) => Ok(Some((place, socket))),
            Err(error) if must => Err(StartError::Runtime(format!("cannot open the upgrade socket {error}"))),
            Err(error) => {
                log::warn!("this process cannot be upgraded: {error}");
                Ok(None)
            }
        }
    }

    async fn serve(mut self, opened: Result<(), Arc<str>>, post: Option<Post>) {
        match self.before.take() {
            // Who is waited for may take its time.
            Some(before) => {
                let _ = aside::run("upgrade", move || relieve(before, opened)).await;
            }
            None => drop(sd_notify::notify(&[sd_notify::NotifyState::Ready])),
        }
        let Some((place, socket)) = post else { return };
        match socket.taken() {
            Ok(listener) => {
                log::info!(path:% = place.path().display(); "upgrade socket");
                self.upgrades.serve(place, listener).await;
            }
            Err(error) => log::error!("this process cannot be upgraded: {error}"),
        }
    }
}

/// Lets the process before this one go, or leaves the place to it.
fn relieve(mut before: Predecessor, opened: Result<(), Arc<str>>) {
    let relieved = match opened {
        Ok(()) => before.relieve().map_err(|error| format!("the process before this one is gone: {error}")),
        Err(listener) => Err(format!("listener `{listener}` is not served")),
    };
    if let Err(reason) = relieved {
        log::error!("{reason}");
        before.disappoint(&StartError::Runtime(reason));
        std::process::exit(3);
    }
}
