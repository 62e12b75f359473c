//! Randomness for sampling, jitter and spreading load; never for secrets, tokens or nonces.

use parking_lot::Mutex;

/// A source of random numbers that an attacker may be able to predict.
pub trait Rng: Send + Sync {
    /// The next number, evenly spread over all of `u64`.
    fn u64(&self) -> u64;
    /// Overwrites the slice with random bytes.
    fn fill(&self, bytes: &mut [u8]);
}

/// Randomness of the running thread, seeded by the system. Fast and not cryptographic: not for secrets.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRng;

impl Rng for SystemRng {
    fn u64(&self) -> u64 {
        fastrand::u64(..)
    }

    fn fill(&self, bytes: &mut [u8]) {
        fastrand::fill(bytes);
    }
}

/// The same numbers for the same seed, for tests and dry runs.
#[derive(Debug)]
pub struct SeededRng(Mutex<fastrand::Rng>);

impl SeededRng {
    /// A generator at the start of this seed's sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(fastrand::Rng::with_seed(seed)))
    }
}

impl Rng for SeededRng {
    fn u64(&self) -> u64 {
        self.0.lock().u64(..)
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (one, two, three) = (SeededRng::new(7), SeededRng::new(7), SeededRng::new(8));
        let numbers = |rng: &SeededRng| [rng.u64(), rng.u64(), rng.u64()];
        assert_eq!(numbers(&one), numbers(&two));
        assert_ne!(numbers(&two), numbers(&three));
    }

    #[test]
    fn filling_overwrites_every_part_of_the_slice() {
        let mut bytes = [0u8; 256];
        SeededRng::new(1).fill(&mut bytes);
        assert!(bytes.chunks(16).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
        SystemRng.fill(&mut bytes[..0]);
    }

    #[test]
    fn the_systems_numbers_differ() {
        assert_ne!([SystemRng.u64(), SystemRng.u64()], [SystemRng.u64(), SystemRng.u64()]);
    }
}
