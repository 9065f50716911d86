//! Memory with a bound.

use std::collections::VecDeque;

/// The last `MAX` things that were kept.
#[derive(Debug)]
pub(super) struct Newest<T, const MAX: usize>(VecDeque<T>);

impl<T, const MAX: usize> Default for Newest<T, MAX> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T, const MAX: usize> Newest<T, MAX> {
    /// Keeps one more. Beyond `MAX`, the oldest is forgotten.
    pub(super) fn keep(&mut self, item: T) {
        self.0.push_front(item);
        self.0.truncate(MAX);
    }

    /// Takes the newest out.
    pub(super) fn take(&mut self) -> Option<T> {
        self.0.pop_front()
    }

    /// The newest that is like this.
    pub(super) fn find(&self, is_it: impl FnMut(&&T) -> bool) -> Option<&T> {
        self.0.iter().find(is_it)
    }

    /// All of them, in the order in which they were kept.
    pub(super) fn into_oldest_first(self) -> impl Iterator<Item = T> {
        self.0.into_iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(items: impl IntoIterator<Item = u32>) -> Newest<u32, 4> {
        let mut kept = Newest::default();
        items.into_iter().for_each(|item| kept.keep(item));
        kept
    }

    #[test]
    fn it_holds_what_came_last_and_no_more_than_that() {
        for (count, expected) in [(0, 0..0), (3, 0..3), (4, 0..4), (5, 1..5), (100, 96..100)] {
            let held: Vec<_> = of(0..count).into_oldest_first().collect();
            assert_eq!(held, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_newest_is_taken_and_found_first() {
        let mut kept = of([1, 2, 3]);
        assert_eq!(kept.find(|item| **item < 3), Some(&2));
        assert_eq!(kept.find(|item| **item > 3), None);
        assert_eq!(
            [(); 4].map(|()| kept.take()),
            [Some(3), Some(2), Some(1), None]
        );
    }
}
