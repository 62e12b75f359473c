//! Which backends a request has been tried at.

/// Backends already tried for a request: a set of their indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tried {
    first: u64,
    rest: Vec<u64>,
}

impl Tried {
    /// Adds a backend.
    pub fn insert(&mut self, index: usize) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        match word.checked_sub(1) {
            None => self.first |= bit,
            Some(word) => {
                self.rest.resize(self.rest.len().max(word + 1), 0);
                self.rest[word] |= bit;
            }
        }
    }

    /// Whether this backend was tried.
    pub fn contains(&self, index: usize) -> bool {
        let word = match (index / 64).checked_sub(1) {
            None => self.first,
            Some(word) => self.rest.get(word).copied().unwrap_or(0),
        };
        word & (1 << (index % 64)) != 0
    }

    /// Whether nothing was tried yet.
    pub fn is_empty(&self) -> bool {
        self.first == 0 && self.rest.iter().all(|word| *word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_of_tried_backends_has_no_upper_end() {
        let mut tried = Tried::default();
        assert!(tried.is_empty());
        for index in [0, 63, 64, 1000] {
            assert!(!tried.contains(index));
            tried.insert(index);
            assert!(tried.contains(index));
        }
        assert!(!tried.contains(65) && !tried.contains(100_000));
    }
}
