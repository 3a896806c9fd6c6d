//! Sums of counts: of the live keys, or of all keys, in the parts of an index.

/// A Fenwick tree: a count for each part, and the sum of the counts before a part in O(log n).
pub(super) struct Counts(Vec<usize>);

impl Counts {
    pub(super) fn of(counts: impl Iterator<Item = usize>) -> Self {
        let mut tree: Vec<usize> = counts.collect();
        for i in 0..tree.len() {
            let parent = i | (i + 1);
            if parent < tree.len() {
                tree[parent] = tree[parent].wrapping_add(tree[i]);
            }
        }
        Self(tree)
    }

    pub(super) fn add(&mut self, mut i: usize, delta: usize) {
        while let Some(n) = self.0.get_mut(i) {
            *n = n.wrapping_add(delta);
            i |= i + 1;
        }
    }

    pub(super) fn subtract(&mut self, i: usize, delta: usize) {
        self.add(i, delta.wrapping_neg());
    }

    /// Sum of the counts before part `end`.
    pub(super) fn before(&self, mut end: usize) -> usize {
        let mut sum = 0usize;
        while end > 0 {
            sum = sum.wrapping_add(self.0[end - 1]);
            end &= end - 1;
        }
        sum
    }

    pub(super) fn total(&self) -> usize {
        self.before(self.0.len())
    }
}
