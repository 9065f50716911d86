//! An error with its causes, printed once, at the edge of a process.
//!
//! House rule: an error's text never repeats its source, so whoever prints one has to walk the chain. This is the only
//! place that does.

use std::error::Error;
use std::fmt;

/// An error, then what caused it, down to the first cause.
pub fn causes<'a>(error: &'a (dyn Error + 'a)) -> impl Iterator<Item = &'a (dyn Error + 'a)> {
    std::iter::successors(Some(error), |&error| Some(error.source()? as _))
}

/// Joins an error and its causes by `: `.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    Chain(error).to_string()
}

/// Shows an error and its causes on one line, joined by `: `, without a string in between.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes(self.0).enumerate().try_for_each(|(depth, error)| {
            let separator = if depth == 0 { "" } else { ": " };
            write!(f, "{separator}{error}")
        })
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameError;

    #[test]
    fn causes_are_joined_in_order() {
        let error = FrameError::Io(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "cannot read or write the stream: inner");
        assert_eq!(causes(&error).count(), 2);
        assert_eq!(format!("{:?}", Chain(&error)), chain(&error));
    }

    #[test]
    fn an_error_without_a_cause_is_its_text() {
        assert_eq!(chain(&fmt::Error), fmt::Error.to_string());
    }
}
