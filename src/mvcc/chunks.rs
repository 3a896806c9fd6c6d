//! A long queue in pieces: it grows without moving what it holds, and gives memory back as it shrinks.
//!
//! A `VecDeque` of millions of entries copies all of them when it grows, while writers wait, and never gets smaller.

use std::collections::VecDeque;

/// Entries of a piece. Few in unit tests, so that every test crosses from one piece to the next.
const PIECE: usize = if cfg!(test) { 4 } else { 1024 };

/// A queue with access by index.
pub(super) struct Chunks<T> {
    /// Pieces of [`PIECE`] entries. The first may have fewer because entries left it, and the last because it is new. None
    /// is empty.
    pieces: VecDeque<VecDeque<T>>,
    len: usize,
}

impl<T> Chunks<T> {
    pub(super) fn new() -> Self {
        Self {
            pieces: VecDeque::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push_back(&mut self, entry: T) {
        self.len += 1;
        match self.pieces.back_mut() {
            Some(last) if last.len() < PIECE => {
                if last.len() == last.capacity() {
                    // The piece is the only one: a short queue stays small.
                    last.reserve_exact(last.len().min(PIECE - last.len()));
                }
                last.push_back(entry);
            }
            last => {
                let room = if last.is_some() { PIECE } else { PIECE.min(16) };
                let mut piece = VecDeque::with_capacity(room);
                piece.push_back(entry);
                self.pieces.push_back(piece);
            }
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let first = self.pieces.front_mut()?;
        let entry = first.pop_front();
        self.len -= 1;
        if first.is_empty() {
            self.pieces.pop_front();
        }
        entry
    }

    pub(super) fn get(&self, at: usize) -> Option<&T> {
        let first = self.pieces.front()?;
        match at.checked_sub(first.len()) {
            None => first.get(at),
            Some(after) => self.pieces.get(1 + after / PIECE)?.get(after % PIECE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_queue_in_pieces_is_a_queue(steps in proptest::collection::vec((any::<bool>(), 1usize..12), 1..60)) {
            let (mut chunks, mut model, mut next) = (Chunks::new(), VecDeque::new(), 0);
            for (push, times) in steps {
                for _ in 0..times {
                    if push {
                        chunks.push_back(next);
                        model.push_back(next);
                        next += 1;
                    } else {
                        prop_assert_eq!(chunks.pop_front(), model.pop_front());
                    }
                }
                prop_assert_eq!(chunks.len(), model.len());
                prop_assert!(chunks.pieces.len() <= model.len() / PIECE + 2);
                for at in 0..model.len() + 2 {
                    prop_assert_eq!(chunks.get(at), model.get(at));
                }
            }
        }
    }
}
