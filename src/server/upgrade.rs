//! Giving way to another process: one is started where a client of the upgrade socket asks for it, gets the
//! sockets and what is remembered, and serves before this process stops.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::Notify;
use tokio::time::sleep;
use tollhouse_filters::world::{Revocations, State};

use super::succession::{BATCH, Memory, Offer, Step, TAKE_OVER};
use super::{Origin, aside, supervisor};
use crate::door::Pause;
use crate::handover::{Answer, Ask, Channel, Place, pair};
use crate::snapshot::Live;
use crate::tls::TicketKeys;

/// How long the new process may take for each step; it looks up and probes backends meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait after a failure to accept.
const REST: Duration = Duration::from_millis(200);
/// Where there is more to read, of a process that says no more.
const SEE_ABOVE: &str = "what it said is on the standard error of this one";
/// How long who asks may take to say what for, and a program to start the new process.
const BRIEFLY: Duration = Duration::from_secs(5);

/// What is handed over, and whether it was.
pub(super) struct Upgrades {
    /// The document, as the new process finds it.
    path: PathBuf,
    live: Arc<Live>,
    state: Arc<dyn State>,
    revocations: Arc<Revocations>,
    pause: Pause,
    /// Whether this process has a say in what it has in common with the next one.
    serving: Arc<AtomicBool>,
    origin: Origin,
    stand: Mutex<Stand>,
    replaced: Notify,
}

struct Stand {
    /// Listening sockets by name; none once this process is on its way out.
    sockets: Option<Arc<Vec<(String, OwnedFd)>>>,
    /// A new process that is not ready yet; its id could be another's by the time it is to be ended.
    under_way: Option<OwnedFd>,
    /// The upgrade socket, as long as it is ours.
    place: Option<Place>,
}

/// Why another process did not take over.
#[derive(Debug)]
struct Failure {
    reason: String,
    configuration: bool,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        match error.kind() {
            BrokenPipe | ConnectionReset | UnexpectedEof => {
                Self::because(format!("the new process ended before it served; {SEE_ABOVE}"))
            }
            TimedOut | WouldBlock => Self::because("the new process takes too long"),
            _ => Self::because(error.to_string()),
        }
    }
}

impl Failure {
    fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), configuration: false }
    }
}

impl Upgrades {
    /// Hands these sockets over when asked to.
    pub(super) fn new(
        path: PathBuf,
        live: Arc<Live>,
        state: Arc<dyn State>,
        revocations: Arc<Revocations>,
        (pause, serving): (Pause, Arc<AtomicBool>),
        sockets: Vec<(String, OwnedFd)>,
        origin: Origin,
    ) -> Self {
        let stand = Stand { sockets: Some(Arc::new(sockets)), under_way: None, place: None };
        let (stand, replaced) = (Mutex::new(stand), Notify::new());
        Self { path, live, state, revocations, pause, serving, origin, stand, replaced }
    }

    /// Waits until another process serves.
    pub(super) async fn replaced(&self) {
        self.replaced.notified().await;
    }

    /// Hands nothing over any more, since this process ends without a successor.
    pub(super) fn give_up(&self) {
        let mut stand = self.stand.lock();
        stand.sockets = None;
        if let Some(place) = stand.place.take() {
            place.leave();
        }
        if let Some(process) = stand.under_way.take() {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Answers clients of the upgrade socket until one of them had this process replaced.
    pub(super) async fn serve(self: Arc<Self>, place: Place, listener: UnixListener) {
        {
            let mut stand = self.stand.lock();
            if stand.sockets.is_none() {
                return place.leave();
            }
            stand.place = Some(place);
        }
        let listener = listener.set_nonblocking(true).and_then(|()| listener.try_into());
        let listener: tokio::net::UnixListener = match listener {
            Ok(listener) => listener,
            Err(error) => return log::error!("this process cannot be upgraded: {error}"),
        };
        loop {
            let Ok(client) = accepted(&listener).await else {
                // Such as no descriptors left; some may be free again by then.
                sleep(REST).await;
                continue;
            };
            let upgrades = self.clone();
            // One after the other: there is one place to take.
            let replaced = aside::run("upgrade", move || upgrades.answer(Channel::new(client))).await;
            if replaced.unwrap_or(false) {
                return;
            }
        }
    }

    /// Does what a client asks for; whether this process was replaced.
    fn answer(&self, mut client: Channel) -> bool {
        let outcome = asked(&mut client).and_then(|ask| {
            self.check_meant(ask.config.as_deref())?;
            self.replace(&ask.program)
        });
        let answer = match &outcome {
            Ok(new) => Answer::Replaced { old: std::process::id(), new: *new },
            Err(failure) => {
                log::error!(reason = failure.reason.as_str(); "the upgrade failed; this process serves on");
                Answer::Refused { reason: failure.reason.clone(), configuration: failure.configuration }
            }
        };
        let _ = client.send(&answer);
        outcome.is_ok()
    }

    /// That no other gateway is meant: who names a document may have found our socket in the place that is usual for
    /// several gateways.
    fn check_meant(&self, config: Option<&Path>) -> Result<(), Failure> {
        // Where our document is gone, the new process will say so.
        let (Some(meant), Ok(ours)) = (config, std::fs::canonicalize(&self.path)) else { return Ok(()) };
        if is_same(meant, &ours) {
            return Ok(());
        }
        let (ours, meant) = (ours.display(), meant.display());
        Err(Failure::because(format!("the gateway that was asked serves {ours}, not {meant}")))
    }

    /// Starts a process and has it take over; gives its id.
    fn replace(&self, program: &Path) -> Result<u32, Failure> {
        if let Some(objection) = supervisor::objection(self.origin) {
            return Err(Failure::because(objection));
        }
        let Some(sockets) = self.stand.lock().sockets.clone() else { return Err(leaving()) };
        log::info!(program:% = program.display(); "starting the process that takes over");
        let (mut channel, theirs) = pair()?;
        channel.set_patience(PATIENCE)?;
        let introduced = self.start(program, theirs).and_then(|()| {
            let pid = self.met(&mut channel)?;
            self.introduce(&mut channel, &sockets).map(|()| pid)
        });
        let mut stand = self.stand.lock();
        let process = stand.under_way.take();
        // Who was told to stop meanwhile has no successor.
        let introduced = introduced.and_then(|pid| stand.sockets.as_ref().map(|_| pid).ok_or_else(leaving));
        let pid = match introduced {
            Ok(pid) => pid,
            Err(failure) => {
                if let Some(process) = process {
                    let _ = pidfd_send_signal(process, Signal::KILL);
                }
                self.revocations.take_back();
                self.serving.store(true, Relaxed);
                self.pause.end();
                return Err(failure);
            }
        };
        // Until the drain begins, should the new process have taken its time.
        self.pause.begin();
        (stand.sockets, stand.place) = (None, None);
        log::info!(pid = pid; "another process has taken over");
        // The service manager follows the process that serves from now on.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::MainPid(pid)]);
        self.replaced.notify_one();
        Ok(pid)
    }

    /// Starts the program, which starts the new process and ends.
    fn start(&self, program: &Path, input: OwnedFd) -> Result<(), Failure> {
        let mut command = Command::new(program);
        command.arg("run").arg(TAKE_OVER).arg("--config").arg(&self.path).stdin(input);
        let failed = |error| Failure::because(format!("cannot start {}: {error}", program.display()));
        let mut child = command.spawn().map_err(failed)?;
        self.under_way(Pid::from_child(&child));
        let status = ended(&mut child);
        self.stand.lock().under_way = None;
        match status.map_err(failed)? {
            status if status.success() => Ok(()),
            status => Err(Failure::because(format!(
                "the new process ended before it served ({status}); {SEE_ABOVE}"
            ))),
        }
    }

    /// Waits for the new process; gives its id.
    fn met(&self, channel: &mut Channel) -> Result<u32, Failure> {
        let Step::Begun { pid } = channel.receive()? else {
            return Err(Failure::because("the new process is confused"));
        };
        if let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            self.under_way(process);
        }
        Ok(pid)
    }

    fn under_way(&self, process: Pid) {
        self.stand.lock().under_way = pidfd_open(process, PidfdFlags::empty()).ok();
    }

    /// Tells the new process all it needs, up to its word that it serves.
    fn introduce(&self, channel: &mut Channel, sockets: &[(String, OwnedFd)]) -> Result<(), Failure> {
        let names = sockets.iter().map(|(name, _)| name.clone()).collect();
        let place = self.stand.lock().place.as_ref().map(|place| place.path().to_owned());
        channel.send(&Offer { sockets: names, tickets: self.tickets(), place })?;
        for (_, socket) in sockets {
            channel.send_socket(socket.as_fd())?;
        }
        reached(channel.receive()?)?;
        // What is let pass from here on, the new process would not know of.
        self.pause.begin();
        self.serving.store(false, Relaxed);
        let entries = self.state.export();
        let mut batches = entries.chunks(BATCH).peekable();
        let mut revocations = self.revocations.hand_over();
        loop {
            let entries = batches.next().unwrap_or_default().to_vec();
            let last = batches.peek().is_none();
            let revocations = std::mem::take(&mut revocations);
            channel.send(&Memory { entries, revocations, last })?;
            if last {
                return reached(channel.receive()?);
            }
        }
    }

    fn tickets(&self) -> Vec<(String, TicketKeys)> {
        let snapshot = self.live.load();
        let with_tls = || snapshot.listeners.iter().filter_map(|plan| Some((plan, plan.tls.as_deref()?)));
        let by_name = with_tls().map(|(plan, tls)| (plan.name.to_string(), tls.ticket_keys()));
        let by_address =
            with_tls().filter_map(|(plan, tls)| Some((plan.fixed_address()?.to_string(), tls.ticket_keys())));
        by_name.chain(by_address).collect()
    }
}

/// The next client, to be talked to on a thread.
async fn accepted(listener: &tokio::net::UnixListener) -> io::Result<UnixStream> {
    let client = listener.accept().await?.0.into_std()?;
    client.set_nonblocking(false)?;
    Ok(client)
}

/// Whether two paths are one file, which may be called otherwise where the gateway is: by a mount, or by a link.
fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()));
    file(one).is_some_and(|known| file(other) == Some(known))
}

/// Reads what a client wants, if it may want anything: it can have programs started as us.
fn asked(client: &mut Channel) -> Result<Ask, Failure> {
    client.set_patience(BRIEFLY)?;
    let user = client.peer()?;
    if user != rustix::process::geteuid() && !user.is_root() {
        return Err(Failure::because("only the user that runs the gateway may upgrade it"));
    }
    client.receive().map_err(|error| Failure::because(format!("the request cannot be read: {error}")))
}

fn reached(step: Step) -> Result<(), Failure> {
    match step {
        Step::Begun { .. } | Step::Prepared | Step::Ready => Ok(()),
        Step::Failed { reason, configuration } => Err(Failure { configuration, ..Failure::because(reason) }),
    }
}

fn leaving() -> Failure {
    Failure::because("this process is stopping")
}

/// Waits for a process that has little to do, after a while by force.
fn ended(child: &mut Child) -> io::Result<ExitStatus> {
    const STEP: Duration = Duration::from_millis(5);
    let mut left = BRIEFLY;
    while !left.is_zero() {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(STEP);
        left = left.saturating_sub(STEP);
    }
    child.kill()?;
    child.wait()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tollhouse_filters::world::{Full, Revocation, Revoked, StateKey, TenantId, World};

    use super::*;
    use crate::snapshot::{Compiler, Mode};
    use crate::source;

    fn upgrades(world: &World, sockets: Vec<(String, OwnedFd)>) -> Upgrades {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, "{version: 1, listeners: [{name: web, address: '127.0.0.1:0'}]}").unwrap();
        let loaded = Arc::new(source::load(&path).unwrap());
        let registry = tollhouse_filters::builtin();
        let compiler = Compiler { registry: &registry, world, previous: None, mode: Mode::Dry, roster: None };
        let live = Arc::new(Live::new(compiler.compile(&loaded).unwrap()));
        let (state, revocations) = (world.state.clone(), world.revocations.clone());
        Upgrades::new(path, live, state, revocations, Default::default(), sockets, Origin::Successor)
    }

    #[tokio::test]
    async fn what_filters_remember_is_handed_over_after_the_sockets_and_in_parts() {
        let (world, next) = (World::dry(), World::dry());
        let key = |n: u32| StateKey::new(TenantId(1), "limit", &n.to_be_bytes());
        let entries = 2 * u32::try_from(BATCH).unwrap() + 1;
        for n in 0..entries {
            world.state.add(&key(n), i64::from(n), Duration::from_secs(60)).await.unwrap();
        }
        let (identity, which) = ("corp".into(), Revoked::Jti("1".into()));
        let revoked = Revocation { identity, which, issued_before: None, expires: 4_102_444_800 };
        world.revocations.add(revoked.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upgrades = upgrades(&world, vec![("web".to_owned(), listener.into())]);
        let (mut ours, theirs) = pair().unwrap();
        let sockets = upgrades.stand.lock().sockets.clone().unwrap();
        let old = std::thread::spawn(move || upgrades.introduce(&mut ours, &sockets).is_ok());
        let mut new = Channel::new(theirs.into());
        let offer: Offer = new.receive().unwrap();
        assert_eq!(offer.sockets, ["web"]);
        assert_eq!(TcpListener::from(new.receive_socket().unwrap()).local_addr().unwrap(), address);
        new.send(&Step::Prepared).unwrap();
        let mut parts = Vec::new();
        loop {
            let Memory { entries, revocations, last } = new.receive().unwrap();
            parts.push(entries.len());
            next.state.import(entries);
            next.revocations.import(revocations);
            if last {
                break;
            }
        }
        new.send(&Step::Ready).unwrap();
        assert!(old.join().unwrap());
        assert_eq!(parts, [BATCH, BATCH, 1]);
        assert_eq!(next.revocations.list(None), std::slice::from_ref(&revoked));
        assert_eq!(world.revocations.add(revoked), Err(Full::HandedOver), "nobody would know of it");
        for n in [0, 1, entries - 1] {
            let sum = next.state.add(&key(n), 1, Duration::from_secs(60)).await.unwrap();
            assert_eq!(sum, i64::from(n) + 1);
        }
    }

    #[test]
    fn a_process_that_gave_up_starts_no_other() {
        let upgrades = upgrades(&World::dry(), Vec::new());
        upgrades.give_up();
        let failure = upgrades.replace(Path::new("/bin/true")).unwrap_err();
        assert_eq!(failure.reason, "this process is stopping");
    }

    #[test]
    fn a_document_by_another_name_is_the_one_that_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for name in ["ours.yaml", "other.yaml"] {
            std::fs::write(file(name), "version: 1").unwrap();
        }
        std::fs::hard_link(file("ours.yaml"), file("linked.yaml")).unwrap();
        let upgrades = Upgrades { path: file("ours.yaml"), ..upgrades(&World::dry(), Vec::new()) };
        for name in ["ours.yaml", "linked.yaml"] {
            assert!(upgrades.check_meant(Some(&file(name))).is_ok(), "{name}");
        }
        for name in ["other.yaml", "missing.yaml"] {
            let failure = upgrades.check_meant(Some(&file(name))).unwrap_err();
            assert!(failure.reason.ends_with(&format!("not {}", file(name).display())), "{}", failure.reason);
        }
    }
}
