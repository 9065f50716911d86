//! Lines of an enclave's log that one program writes and another one looks for.

/// How the last line begins; the reason follows.
pub const ENDED: &str = "info: ended: ";

/// How the second line of a log begins whose older part is gone. What follows is the offset, in the file as it was before, of
/// what is now behind this line: whoever follows the log goes on from there.
pub const CUT: &str = "info: older lines are gone; what follows began at byte ";
