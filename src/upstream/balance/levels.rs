//! Groups of backends that get requests one after the other: by priority, and by zone within it.

use tollhouse_filters::values::Percent;

/// Where a backend is among the groups: those of a lower place first.
pub(in crate::upstream) type Place = (u8, bool);

/// The group of each member.
#[derive(Debug)]
pub(super) struct Levels {
    of: Box<[usize]>,
    count: usize,
    /// From this share of usable members on, a group gets all requests that reach it.
    whole: f64,
}

impl Levels {
    /// The groups of members at these places; none if there is only one.
    pub(super) fn new(places: &[Place], below: Percent) -> Option<Self> {
        let mut order = places.to_vec();
        order.sort_unstable();
        order.dedup();
        if order.len() < 2 {
            return None;
        }
        let of = places.iter().map(|place| order.partition_point(|other| other < place)).collect();
        Some(Self { of, count: order.len(), whole: below.fraction() })
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    pub(super) fn holds(&self, level: usize, at: usize) -> bool {
        self.of.get(at) == Some(&level)
    }

    /// Whether a request stays with a group so many of which can be used of all that count; `random` is from 0 to 1.
    pub(super) fn keeps(&self, usable: usize, all: usize, random: f64) -> bool {
        if usable == 0 {
            return false;
        }
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 backends")]
        let share = usable as f64 / all as f64;
        share >= self.whole || random < share / self.whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_in_the_order_of_priority_and_then_of_zone() {
        let places = [(1, false), (0, true), (0, false), (0, false)];
        let levels = Levels::new(&places, Percent::from_whole(70)).unwrap();
        assert_eq!((&*levels.of, levels.count()), (&[2, 1, 0, 0][..], 3));
        assert!(Levels::new(&[(3, true); 5], Percent::from_whole(70)).is_none());
    }

    #[test]
    fn a_group_loses_requests_in_proportion_once_too_few_can_be_used() {
        let levels = Levels::new(&[(0, false), (1, false)], Percent::from_whole(80)).unwrap();
        let share = |usable| (0..100).filter(|n| levels.keeps(usable, 10, f64::from(*n) / 100.0)).count();
        assert_eq!([10, 8, 4, 2, 0].map(share), [100, 100, 50, 25, 0]);
    }
}
