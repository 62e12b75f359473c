//! What the process is told from outside. It listens before it does anything else, since a signal that
//! nobody listens for ends a process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Signals, as they come.
pub(super) struct Signals {
    /// To end: SIGTERM and SIGINT.
    pub(super) stops: UnboundedReceiver<()>,
    /// To reload: SIGHUP.
    pub(super) hangups: UnboundedReceiver<()>,
    /// Set once `stops` is listened to; before, they end the process.
    pub(super) serving: Arc<AtomicBool>,
    /// Where they are listened to, and where what seldom happens waits for its time.
    pub(super) runtime: Handle,
}

/// Listens from now on, on a thread of its own.
///
/// # Errors
/// The system refuses.
pub(super) fn listen() -> io::Result<Signals> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let sources = {
        let _inside = runtime.enter();
        Sources {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        }
    };
    let (stop, stops) = unbounded_channel();
    let (hangup, hangups) = unbounded_channel();
    let serving = Arc::<AtomicBool>::default();
    let heard = serving.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(sources.pass_on(&stop, &hangup, &heard)))?;
    Ok(Signals { stops, hangups, serving, runtime: handle })
}

struct Sources {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Sources {
    async fn pass_on(
        mut self,
        stop: &UnboundedSender<()>,
        hangup: &UnboundedSender<()>,
        serving: &AtomicBool,
    ) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hangup.recv() => {
                    let _ = hangup.send(());
                    continue;
                }
                _ = self.quit.recv() => {
                    log::error!("SIGQUIT is ignored: `tollhouse upgrade` replaces a gateway, SIGTERM stops it");
                    continue;
                }
            }
            // Nobody listens any more to who comes while the process writes down what there is, at its end.
            let _ = stop.send(());
            if !serving.load(Relaxed) {
                log::info!("stopping before anything was served");
                std::process::exit(0);
            }
        }
    }
}
