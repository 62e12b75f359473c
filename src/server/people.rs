//! Follows the consumers' file: what changes there is live at once, and the document is not compiled for it.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::consumers::{self, Look, Looked, Roster};
use crate::observe::metrics::Registry;
use crate::snapshot::Live;
use crate::source::{Stir, Tap};

/// How long a change may take to be looked at as a whole, when only a part was looked at for speed.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks at a file that cannot be watched, or not be read.
const POLL: Duration = Duration::from_secs(2);

/// Tells the thread that something happened: around the file, or to the document that names it.
pub(super) type Stirs = mpsc::Sender<Stir>;

/// Starts the thread that follows the file of the running snapshot.
pub(super) fn start(live: Arc<Live>) -> Stirs {
    let (stirs, received) = mpsc::channel();
    let tell = stirs.clone();
    let tap = Tap::new(move |stir| {
        let _ = tell.send(stir);
    });
    super::reloading::spawn("consumers", move || Follower { live, tap, due: None }.run(&received));
    stirs
}

/// Numbers of the running snapshot's consumers.
pub(super) fn export(registry: &Registry, live: &Arc<Live>) {
    let of = |number: fn(&Roster) -> u64| {
        let live = live.clone();
        move || number(&live.load().consumers)
    };
    let count = of(|roster| roster.consumers().load().len() as u64);
    registry.register_gauge_fn("tollhouse_consumers", "Consumers that there are.", &[], move || {
        i64::try_from(count()).unwrap_or(i64::MAX)
    });
    let changes = of(|roster| roster.counts().0);
    let help = "Changes of the consumers' file that were taken.";
    registry.register_counter_fn("tollhouse_consumers_changes_total", help, &[], changes);
    let refusals = of(|roster| roster.counts().1);
    let help = "States of the consumers' file that were refused.";
    registry.register_counter_fn("tollhouse_consumers_refused_total", help, &[], refusals);
}

struct Follower {
    live: Arc<Live>,
    tap: Tap,
    /// When to look again, whatever happens, and how.
    due: Option<(Instant, Look)>,
}

impl Follower {
    fn run(mut self, stirs: &Receiver<Stir>) {
        // Whoever wrote before the file was watched may be done: nobody would tell.
        let mut look = Look::Settled;
        loop {
            let roster = self.live.load().consumers.clone();
            let is_watched = self.tap.watch(roster.file());
            self.look(&roster, look);
            let poll = (!is_watched).then(|| (Instant::now() + POLL, Look::Quiet));
            let due = [self.due, poll].into_iter().flatten().min_by_key(|(at, _)| *at);
            let stir = match due {
                None => stirs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some((due, _)) => stirs.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            look = match stir {
                Ok(first)
                    if std::iter::once(first).chain(stirs.try_iter()).any(|stir| stir == Stir::Settled) =>
                {
                    Look::Settled
                }
                Ok(_) if self.due.is_none_or(|(due, _)| Instant::now() < due) => Look::Early,
                Ok(_) | Err(RecvTimeoutError::Timeout) => due.map_or(Look::Quiet, |(_, look)| look),
                Err(RecvTimeoutError::Disconnected) => return,
            };
        }
    }

    fn look(&mut self, roster: &Roster, look: Look) {
        let after = |wait, look| Some((Instant::now() + wait, look));
        let looked = roster.look(look);
        self.due = match (&looked, look) {
            (Looked::Busy, _) => after(consumers::PAUSE, Look::Early),
            (Looked::Unsettled, _) => after(consumers::QUIET, Look::Quiet),
            (Looked::Refused { unread: true, .. }, _) => after(POLL, Look::Quiet),
            // It may have changed elsewhere, too.
            (Looked::Changed { partly: true, .. }, _) | (_, Look::Early) => {
                self.due.filter(|(_, look)| *look == Look::Quiet).or(after(SOON, Look::Quiet))
            }
            (_, Look::Settled | Look::Quiet) => None,
        };
        match looked {
            Looked::Changed { count, .. } => log::info!(consumers = count; "consumers changed"),
            Looked::Refused { problems, again: false, .. } => {
                for problem in &problems.list {
                    log::error!("{problem}");
                }
                log::error!("the changed consumers are refused; requests go by those before");
            }
            Looked::Same | Looked::Busy | Looked::Unsettled | Looked::Refused { again: true, .. } => {}
        }
    }
}
