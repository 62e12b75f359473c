//! Refuses requests of low priority while the process has too much to do, as Envoy's overload manager does.
//!
//! A task on the runtime that serves requests measures how late it is woken, and looks at the memory in use. While one of
//! them is over its threshold, a level rises step by step: at 1, requests of priority `low` are refused, at 2 `normal`
//! ones too, at 3 all but `critical` ones. It falls as slowly, once both were well below for a while. A request that is
//! let pass costs one load.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tollhouse_filters::outcome::Reply;
use tollhouse_filters::plan::Priority;
use tollhouse_filters::problem::{self, Problem};

use super::Call;
use crate::config::Overload as Written;
use crate::observe::Registry;
use crate::snapshot::Live;

/// Between two looks at the event loop.
const TICK: Duration = Duration::from_millis(20);
/// Looks at the event loop for one at the memory, and one judgement.
const TICKS: u32 = 10;
/// Between two looks where there is no threshold.
const IDLE: Duration = Duration::from_secs(1);
/// Below this share of the thresholds all is well.
const EASE: f64 = 0.8;
/// From one level to the next, and how long all has to be well for a level to end.
const UP: Duration = Duration::from_millis(500);
const DOWN: Duration = Duration::from_secs(2);
/// The highest level: all but `critical`.
const MOST: u8 = 3;

/// Which requests are refused.
#[derive(Debug, Default)]
pub struct Overload {
    /// Requests of a lower priority are.
    level: AtomicU8,
    /// How late the event loop was last, in microseconds.
    late: AtomicI64,
    refused: [AtomicU64; MOST as usize],
}

impl Overload {
    /// Requests whose priority is less are refused; nearly always 0.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level.load(Ordering::Relaxed)
    }

    /// Refuses a request of a priority below this level.
    pub(super) fn refuse(&self, level: u8, priority: Priority, call: &mut Call) -> Result<(), Reply> {
        if priority as u8 >= level {
            return Ok(());
        }
        if let Some(count) = self.refused.get(priority as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let detail = format!("requests of priority `{}` are refused for now", priority.as_str());
        call.reason = Some(detail.clone());
        Err(Problem::new(&problem::OVERLOADED).detail(detail).into())
    }

    /// Exports its numbers.
    pub fn export(self: &Arc<Self>, registry: &Registry) {
        let shown = self.clone();
        let help = "Requests of priority low (1), normal too (2), all but critical ones (3) are refused.";
        registry.register_gauge_fn("tollhouse_overload_level", help, &[], move || shown.level().into());
        let shown = self.clone();
        let help = "Microseconds that the event loop was late at its latest, lately.";
        registry.register_gauge_fn("tollhouse_event_loop_delay_microseconds", help, &[], move || {
            shown.late.load(Ordering::Relaxed)
        });
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            let shown = self.clone();
            let help = "Requests refused by their priority, as the process had too much to do.";
            let labels = [("priority", priority.as_str())];
            registry.register_counter_fn("tollhouse_overload_refused_total", help, &labels, move || {
                shown.refused[priority as usize].load(Ordering::Relaxed)
            });
        }
    }

    /// Looks after the runtime that this runs on, for as long as there is a document in use.
    pub async fn watch(self: Arc<Self>, live: Weak<Live>) {
        let mut pressure = Pressure::default();
        while let Some(written) = live.upgrade().map(|live| live.load().server.overload.clone()) {
            if written.loop_delay.is_none() && written.memory.is_none() {
                pressure = Pressure::default();
                self.level.store(0, Ordering::Relaxed);
                tokio::time::sleep(IDLE).await;
                continue;
            }
            let late = latest().await;
            self.late.store(i64::try_from(late.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
            let (strain, why) = strain(&written, late, resident());
            if pressure.judge(strain, Instant::now()) {
                self.level.store(pressure.level, Ordering::Relaxed);
                match pressure.level {
                    0 => log::info!("no requests are refused any more"),
                    level => log::warn!(level = level, reason = why; "requests of low priority are refused"),
                }
            }
        }
    }
}

/// The latest that this task is woken in some ticks.
async fn latest() -> Duration {
    let mut latest = Duration::ZERO;
    for _ in 0..TICKS {
        let begun = Instant::now();
        tokio::time::sleep(TICK).await;
        latest = latest.max(begun.elapsed().saturating_sub(TICK));
    }
    latest
}

/// How near the thresholds it is, 1 at the nearest, and what is.
fn strain(written: &Written, late: Duration, resident: u64) -> (f64, &'static str) {
    let of_loop = written.loop_delay.map_or(0.0, |most| late.as_secs_f64() / most.get().as_secs_f64());
    let of_memory = written.memory.map_or(0.0, |share| {
        let limit = written.memory_limit.map_or_else(memory_limit, |limit| limit.get());
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 bytes")]
        let share_used = resident as f64 / limit.max(1) as f64;
        share_used / (f64::from(share.hundredths().max(1)) / 10_000.0)
    });
    if of_loop >= of_memory { (of_loop, "the event loop is late") } else { (of_memory, "memory") }
}

/// Bytes of the process in memory.
fn resident() -> u64 {
    kib("/proc/self/status", "VmRSS:").unwrap_or_default()
}

/// What the control group allows for, or what the machine has.
fn memory_limit() -> u64 {
    let all = kib("/proc/meminfo", "MemTotal:").unwrap_or(u64::MAX);
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let files = [
        format!("/sys/fs/cgroup{}/memory.max", path.trim_end_matches('/')),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    let limits = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.fold(all, u64::min)
}

/// A line of such a file, in bytes.
fn kib(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

/// How the level goes up and down.
#[derive(Debug, Default)]
struct Pressure {
    level: u8,
    changed: Option<Instant>,
    /// Since when all is well.
    well: Option<Instant>,
}

impl Pressure {
    /// Takes in how near the thresholds it is; true if the level is another.
    fn judge(&mut self, strain: f64, now: Instant) -> bool {
        let for_long = |since: Option<Instant>, least| {
            since.is_none_or(|since| now.saturating_duration_since(since) >= least)
        };
        if strain >= EASE {
            self.well = None;
        }
        if strain >= 1.0 && self.level < MOST && for_long(self.changed, UP) {
            (self.level, self.changed) = (self.level + 1, Some(now));
            return true;
        }
        if strain < EASE && self.level > 0 {
            let well = *self.well.get_or_insert(now);
            if now.saturating_duration_since(well) >= DOWN {
                (self.level, self.changed, self.well) = (self.level - 1, Some(now), Some(now));
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_rises_step_by_step_and_falls_when_all_was_well_for_a_while() {
        let (mut pressure, begun) = (Pressure::default(), Instant::now());
        let mut at = |millis: u64, strain: f64| {
            pressure.judge(strain, begun + Duration::from_millis(millis));
            pressure.level
        };
        assert_eq!([at(0, 0.99), at(100, 1.0), at(300, 2.0), at(599, 2.0)], [0, 1, 1, 1]);
        assert_eq!([at(600, 2.0), at(1100, 2.0), at(9000, 2.0)], [2, 3, 3], "never `critical` ones");
        // Between the two thresholds it stays.
        assert_eq!([at(9100, 0.9), at(20_000, 0.9)], [3, 3]);
        assert_eq!([at(20_100, 0.5), at(22_000, 0.5), at(22_100, 0.5), at(24_099, 0.5)], [3, 3, 2, 2]);
        // A moment that is not well begins the wait anew.
        assert_eq!([at(24_100, 0.5), at(25_000, 0.85), at(25_100, 0.5), at(27_000, 0.5)], [1; 4]);
        assert_eq!([at(27_100, 0.5), at(30_000, 0.5)], [0, 0]);
    }

    #[test]
    fn the_nearest_threshold_counts() {
        let written: Written = serde_json::from_value(
            serde_json::json!({"loop_delay": "100ms", "memory": "50%", "memory_limit": "1GiB"}),
        )
        .expect("valid");
        let of = |millis, mib: u64| strain(&written, Duration::from_millis(millis), mib << 20);
        assert_eq!(of(50, 0), (0.5, "the event loop is late"));
        assert_eq!(of(0, 512), (1.0, "memory"));
        assert_eq!(of(250, 256).0, 2.5);
        assert_eq!(strain(&Written::default(), Duration::from_secs(9), u64::MAX).0, 0.0);
        assert!(resident() > 1 << 20 && memory_limit() > resident());
    }
}
