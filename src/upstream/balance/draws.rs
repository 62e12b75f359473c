//! Weighted random draws.

/// Draws from a draw that is not accepted before all are looked through instead.
const DRAWS: usize = 4;

/// Weights to draw by.
#[derive(Debug)]
pub(super) struct Draws {
    /// The sum of all weights up to and with each; never empty, and the last is not 0.
    sums: Box<[u32]>,
    total: u32,
    /// Each weighs the same.
    even: bool,
}

impl Draws {
    /// Draws by these weights, none of which is 0.
    pub(super) fn new(weights: &[u16]) -> Self {
        let sums: Box<[u32]> = weights
            .iter()
            .scan(0_u32, |sum, weight| {
                *sum += u32::from(*weight);
                Some(*sum)
            })
            .collect();
        let even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        Self { total: sums.last().copied().unwrap_or(0).max(1), sums, even }
    }

    /// A position, each as likely as its weight among those that are accepted.
    pub(super) fn one(&self, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let drawn = (0..DRAWS).map(|_| self.draw()).find(|at| accept(*at));
        drawn.or_else(|| self.scan(accept))
    }

    /// As [`Draws::one`], looking at each once, which takes long for many but never fails in vain.
    pub(super) fn scan(&self, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let mut sum = 0;
        let mut chosen = None;
        for at in (0..self.sums.len()).filter(|at| accept(*at)) {
            let weight = self.weight(at);
            sum += weight;
            if fastrand::u32(..sum) < weight {
                chosen = Some(at);
            }
        }
        chosen
    }

    /// The cheaper one of two draws, the first if they cost the same.
    pub(super) fn better_of_two<C: PartialOrd>(
        &self,
        accept: impl Fn(usize) -> bool,
        cost: impl Fn(usize) -> C,
    ) -> Option<usize> {
        let first = self.one(&accept)?;
        let second = self.one(|at| at != first && accept(at));
        Some(second.filter(|second| cost(*second) < cost(first)).unwrap_or(first))
    }

    fn draw(&self) -> usize {
        if self.even {
            return fastrand::usize(..self.sums.len());
        }
        let point = fastrand::u32(..self.total);
        self.sums.partition_point(|sum| *sum <= point)
    }

    fn weight(&self, at: usize) -> u32 {
        self.sums[at] - at.checked_sub(1).map_or(0, |before| self.sums[before])
    }
}
