//! Signals by name.

/// Names of the signals that end processes, with their numbers on Linux.
const NAMES: [(&str, i32); 17] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("WINCH", libc::SIGWINCH),
    ("PWR", libc::SIGPWR),
];

/// First real-time signal that programs may use, and the last one.
const REAL_TIME: (i32, i32) = (34, 64);

/// Reads `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`; anything else is SIGTERM.
pub(super) fn parse(text: &str) -> i32 {
    let name = text.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let known = NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number);
    let real_time = || {
        Some(
            REAL_TIME.0
                + name
                    .strip_prefix("RTMIN+")?
                    .parse::<u8>()
                    .ok()
                    .map(i32::from)?,
        )
    };
    let number = known.or_else(|| name.parse().ok()).or_else(real_time);
    number
        .filter(|number| (1..=REAL_TIME.1).contains(number))
        .unwrap_or(libc::SIGTERM)
}

/// " (SIGKILL)", or nothing for a signal without a name here.
pub(super) fn suffix(number: i32) -> String {
    let name = NAMES.iter().find(|(_, known)| *known == number);
    name.map(|(name, _)| format!(" (SIG{name})"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        assert_eq!(parse("SIGTERM"), 15);
        assert_eq!(parse("quit"), 3);
        assert_eq!(parse("9"), 9);
        assert_eq!(parse("SIGRTMIN+3"), 37);
    }

    #[test]
    fn nonsense_is_sigterm() {
        for text in [
            "",
            "SIGNONSENSE",
            "0",
            "-1",
            "65",
            "SIGRTMIN+31",
            "99999999999",
        ] {
            assert_eq!(parse(text), 15, "{text}");
        }
    }

    #[test]
    fn numbers_have_names() {
        assert_eq!(suffix(9), " (SIGKILL)");
        assert_eq!(suffix(50), "");
    }
}
