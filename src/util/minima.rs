//! The smallest of the values of the last minutes.

use std::collections::VecDeque;

/// Minutes of which values are remembered: longer than a disturbance lasts, and shorter than it takes two good clocks to drift
/// apart by a millisecond.
pub const WINDOW: u64 = 10;

/// The smallest value of each of the last [`WINDOW`] minutes, with the minute.
#[derive(Clone, Debug)]
pub struct Minima<T>(VecDeque<(u64, T)>);

impl<T> Default for Minima<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy + Ord> Minima<T> {
    /// Adds a value of the minute `now`, which is not before that of the value added last; returns the smallest of the window.
    pub fn add(&mut self, now: u64, value: T) -> T {
        match self.0.back_mut() {
            Some((minute, smallest)) if *minute == now => *smallest = value.min(*smallest),
            _ => self.0.push_back((now, value)),
        }
        while self.0.front().is_some_and(|(minute, _)| minute + WINDOW <= now) {
            self.0.pop_front();
        }
        self.smallest(now).unwrap_or(value)
    }

    /// The smallest value of the window that ends with the minute `now`; `None` without a value in it.
    pub fn smallest(&self, now: u64) -> Option<T> {
        let in_window = self.0.iter().filter(|(minute, _)| minute + WINDOW > now);
        in_window.map(|(_, value)| *value).min()
    }

    /// Minutes with a value that are remembered.
    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_value_counts_until_the_window_has_passed() {
        let mut minima = Minima::default();
        assert_eq!(minima.smallest(0), None);
        assert_eq!((minima.add(0, 5), minima.add(0, 3), minima.add(0, 4)), (5, 3, 3));
        assert_eq!((minima.add(WINDOW - 1, 8), minima.add(WINDOW, 9)), (3, 8));
        assert_eq!(
            (minima.smallest(2 * WINDOW - 1), minima.smallest(2 * WINDOW)),
            (Some(9), None)
        );
        assert_eq!(minima.remembered(), 2);
    }
}
