//! Signals by name, as an image's `StopSignal` has them: read when an image is built, so that a wrong one is told to whoever
//! builds, and again inside the enclave.
//!
//! The numbers are Linux's on x86-64 and aarch64.

/// Names without `SIG`, with their numbers. Of two names for a number the usual one is the first.
const NAMES: [(&str, u8); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The real-time signals that programs may use: the C library keeps those between 31 and the first.
const REAL_TIME: (u8, u8) = (34, 64);

/// Reads `SIGTERM`, `TERM`, `15`, `SIGRTMIN`, `SIGRTMIN+3` or `SIGRTMAX-1`, in upper or lower case, as container engines do.
pub fn number(text: &str) -> Option<u8> {
    let name = text.trim().to_ascii_uppercase();
    if let Ok(number) = name.parse() {
        return (1..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, number)| *number)
        .or_else(|| real_time(name))
        .filter(|number| *number <= REAL_TIME.1)
}

fn real_time(name: &str) -> Option<u8> {
    let offset = |text: &str, sign| match text {
        "" => Some(0),
        _ => text.strip_prefix(sign)?.parse::<u8>().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(up), _) => REAL_TIME.0.checked_add(offset(up, '+')?)?,
        (_, Some(down)) => REAL_TIME.1.checked_sub(offset(down, '-')?)?,
        _ => return None,
    };
    (REAL_TIME.0 <= number).then_some(number)
}

/// The name of a signal that has one: `SIGKILL`.
pub fn name(number: i32) -> Option<String> {
    let known = NAMES.iter().find(|(_, known)| i32::from(*known) == number);
    known.map(|(name, _)| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, expected) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("quit", 3),
            ("sigusr1", 10),
            ("9", 9),
            ("64", 64),
            ("SIGIO", 29),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMIN+30", 64),
            ("SIGRTMAX", 64),
            ("SIGRTMAX-30", 34),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_signal() {
        for text in [
            "",
            "SIG",
            "SIGNONSENSE",
            "SIG9X",
            "0",
            "-1",
            "65",
            "256",
            "99999999999",
            "SIGRTMIN+31",
            "SIGRTMIN+255",
            "SIGRTMIN-1",
            "SIGRTMAX-31",
            "SIGRTMAX+1",
            "SIGRTMIN+",
            "TERM!",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_have_names() {
        assert_eq!(name(9).as_deref(), Some("SIGKILL"));
        assert_eq!(name(6).as_deref(), Some("SIGABRT"));
        assert_eq!((name(50), name(0), name(-9)), (None, None, None));
    }
}
