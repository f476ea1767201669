//! How much each has taken of something that is limited; whoever has given all of it back is forgotten.

use std::{collections::HashMap, hash::Hash};

#[derive(Debug)]
pub struct Tally<K>(HashMap<K, usize>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// What one has.
    pub fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or_default()
    }

    pub fn take(&mut self, key: K, amount: usize) {
        *self.0.entry(key).or_default() += amount;
    }

    /// Gives back some of what was taken.
    pub fn give_back(&mut self, key: &K, amount: usize) {
        let rest = self.of(key).saturating_sub(amount);
        match self.0.get_mut(key) {
            Some(taken) if rest > 0 => *taken = rest,
            _ => drop(self.0.remove(key)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_what_was_taken_and_not_given_back() {
        let mut tally = Tally::default();
        tally.take("alice", 3);
        tally.take("bob", 1);
        tally.give_back(&"alice", 2);
        assert_eq!(
            (tally.of(&"alice"), tally.of(&"bob"), tally.of(&"carol")),
            (1, 1, 0)
        );
        tally.give_back(&"alice", 1);
        tally.give_back(&"bob", 1);
        assert!(tally.is_empty());
    }
}
