//! Follows the consumers' file: what changes there is live at once, and the document is not compiled for it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout_at;

use super::aside::{self, Panicked};
use crate::consumers::{self, Look, Looked, Roster};
use crate::observe::metrics::Registry;
use crate::snapshot::Live;
use crate::source::{Stir, Tap};

/// How long a change may take to be looked at as a whole, when only a part was looked at for speed.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks at a file that cannot be watched, or not be read.
const POLL: Duration = Duration::from_secs(2);

/// Tells the follower that something happened: around the file, or to the document that names it.
pub(super) type Stirs = UnboundedSender<Stir>;

/// Starts to follow the file of the running snapshot.
pub(super) fn start(live: Arc<Live>, runtime: &Handle) -> Stirs {
    let (stirs, received) = unbounded_channel();
    let follower = Follower { live, stirs: stirs.clone(), tap: None, due: None };
    runtime.spawn(follow(Arc::new(Mutex::new(follower)), received));
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

/// Looks at the file whenever there may be something new, on a thread that is there for as long as it takes.
async fn follow(follower: Arc<Mutex<Follower>>, mut stirs: UnboundedReceiver<Stir>) {
    // Whoever wrote before the file was watched may be done: nobody would tell.
    let mut look = Look::Settled;
    loop {
        let turning = follower.clone();
        let next = or_again(aside::run("consumers", move || turning.lock().turn(look)).await);
        let stir = match next {
            None => Ok(stirs.recv().await),
            Some((due, _)) => timeout_at(due.into(), stirs.recv()).await,
        };
        look = match stir {
            Ok(Some(first)) => {
                let more = std::iter::from_fn(|| stirs.try_recv().ok());
                let settled = std::iter::once(first).chain(more).any(|stir| stir == Stir::Settled);
                follower.lock().look_for(settled, next)
            }
            Ok(None) => return,
            Err(_) => next.map_or(Look::Quiet, |(_, look)| look),
        };
    }
}

/// When to look again though nothing happens, and how.
type Next = Option<(Instant, Look)>;

/// As a turn says; one that panicked is not the last.
fn or_again(turned: Result<Next, Panicked>) -> Next {
    turned.unwrap_or_else(|error| {
        log::error!("cannot look at the consumers, trying again: {error}");
        Some((Instant::now() + POLL, Look::Quiet))
    })
}

struct Follower {
    live: Arc<Live>,
    stirs: Stirs,
    /// What tells of the file, if there is one.
    tap: Option<Tap>,
    /// When to look again, whatever happens, and how.
    due: Next,
}

impl Follower {
    /// Looks once; gives when to look again though nothing happens, and how.
    fn turn(&mut self, look: Look) -> Next {
        let roster = self.live.load().consumers.clone();
        let is_watched = self.watch(roster.file());
        self.look(&roster, look);
        let poll = (!is_watched).then(|| (Instant::now() + POLL, Look::Quiet));
        [self.due, poll].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Has the file watched, if there is one; whether there is nothing more to do to hear of changes.
    fn watch(&mut self, file: Option<&Path>) -> bool {
        if file.is_none() {
            self.tap = None;
            return true;
        }
        let tap = self.tap.get_or_insert_with(|| {
            let tell = self.stirs.clone();
            Tap::new(move |stir| {
                let _ = tell.send(stir);
            })
        });
        tap.watch(file)
    }

    /// How to look once something happened.
    fn look_for(&self, settled: bool, next: Next) -> Look {
        if settled {
            return Look::Settled;
        }
        match next {
            Some((_, look)) if self.due.is_some_and(|(due, _)| Instant::now() >= due) => look,
            _ => Look::Early,
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
            (Looked::Partly | Looked::Changed { partly: true, .. }, _) | (_, Look::Early) => {
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
            Looked::Same
            | Looked::Partly
            | Looked::Busy
            | Looked::Unsettled
            | Looked::Refused { again: true, .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_panics_is_not_the_last_one() {
        let soon = Instant::now() + Duration::from_secs(60);
        assert!(or_again(Err(Panicked)).is_some_and(|(at, look)| at < soon && look == Look::Quiet));
        assert_eq!(or_again(Ok(None)), None);
    }
}
