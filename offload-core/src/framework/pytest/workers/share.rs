//! Who collects which files next. Pure.
//!
//! Every worker has a share of the files, contiguous, because neighbours have conftests and imports in common, and of
//! about the same number. It gets it in small pieces. Who is through takes over half of what is left of the largest
//! share, from its end, so that a file that takes long to import delays nobody else.

use std::ops::Range;

/// The most files that are handed out at once.
const LARGEST_PIECE: usize = 16;
/// A piece is what is left of a share divided by this.
const PIECES: usize = 4;

/// The shares of all workers, as positions in the list of files.
#[derive(Debug)]
pub(super) struct Shares(Vec<Range<usize>>);

impl Shares {
    /// `files` files for `workers` workers.
    pub fn new(files: usize, workers: usize) -> Self {
        let bound = |worker: usize| files * worker / workers.max(1);
        Self((0..workers).map(|worker| bound(worker)..bound(worker + 1)).collect())
    }

    /// The next files for a worker; empty when there are none left anywhere.
    pub fn next(&mut self, worker: usize) -> Range<usize> {
        if self.0[worker].is_empty() {
            let Some(largest) = (0..self.0.len()).max_by_key(|&other| self.0[other].len()) else { return 0..0 };
            let Range { start, end } = self.0[largest].clone();
            let middle = start + (end - start) / 2;
            self.0[largest] = start..middle;
            self.0[worker] = middle..end;
        }
        let Range { start, end } = self.0[worker].clone();
        let piece = (end - start).div_ceil(PIECES).min(LARGEST_PIECE);
        self.0[worker] = start + piece..end;
        start..start + piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn workers_begin_with_neighbouring_files() {
        let mut shares = Shares::new(100, 4);
        assert_eq!(shares.next(0), 0..7);
        assert_eq!(shares.next(3), 75..82);
        assert_eq!(shares.next(0), 7..12);
    }

    #[test]
    fn who_is_through_helps_the_one_with_the_most_left() {
        let mut shares = Shares::new(8, 2);
        while !shares.0[0].is_empty() {
            shares.next(0);
        }
        assert_eq!(shares.next(0), 6..7);
        assert_eq!(shares.next(1), 4..5);
    }

    proptest! {
        #[test]
        fn every_file_is_handed_out_once(files in 0..500usize, order in prop::collection::vec(0..5usize, 1..50)) {
            let mut shares = Shares::new(files, 5);
            let mut handed = vec![0; files];
            for &worker in order.iter().cycle() {
                let piece = shares.next(worker);
                if piece.is_empty() {
                    break;
                }
                piece.for_each(|file| handed[file] += 1);
            }
            prop_assert!(handed.iter().all(|&times| times == 1));
        }
    }
}
