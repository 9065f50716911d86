//! The kernel's command line: what was measured, then what the engine adds.
//!
//! The kernel takes the last value of most parameters, so the engine's come last and the image cannot undo
//! them. Two constructions in the measured part would swallow what follows, and are handled here: a bare
//! `--`, after which everything is arguments of init (the additions go before it), and an open quote (refused).
//! The caller of `run-enclave` has no say in any of it.
//!
//! A kernel without ACPI finds its devices by `virtio_mmio.device=` words. An image says so by the measured word
//! `acpi=off`; its machine then has no ACPI tables, and QEMU adds one such word for each device, at the very end.

/// Longest command line that an x86 kernel takes (`COMMAND_LINE_SIZE`), the terminating zero included.
const MAX_LEN: usize = 2048;

/// Room for what QEMU adds for the vsock and the NSM: ` virtio_mmio.device=512@0xfeb00e00:12` twice, rounded up.
const DEVICE_WORDS: usize = 128;

/// Initcalls that cost time under TCG and serve nothing an enclave has: the jitter entropy source (the NSM
/// seeds the guest), tracing and BPF conveniences.
const SKIPPED_INITCALLS: &str =
    "jent_mod_init,init_kprobe_trace,bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init";

/// Why there is no valid command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// The measured part holds bytes that a command line cannot have.
    #[error(
        "the image's kernel command line holds a character that is not printable ASCII; rebuild the image"
    )]
    NotPrintable,
    /// The measured part has an odd number of quotes.
    #[error("the image's kernel command line has a quote that is never closed; rebuild the image")]
    OpenQuote,
    /// The words for the devices would become arguments of init.
    #[error(
        "the image's kernel command line has `acpi=off`, so the devices' addresses follow it, and a bare `--`, which \
         would hide them from the kernel; rebuild the image without one of the two"
    )]
    HiddenDevices,
    /// The whole is too long for the kernel.
    #[error(
        "the kernel command line would be {len} bytes with the engine's part, and the kernel takes {max}; \
         shorten the image's",
        max = MAX_LEN - 1
    )]
    TooLong {
        /// Length that it would have.
        len: usize,
    },
}

/// What the engine's part depends on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u64,
    /// Number of vCPUs.
    pub cpus: u32,
}

/// A complete command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// What the kernel is told, but for the devices' addresses where there is no ACPI.
    pub line: String,
    /// Whether the machine describes its devices by ACPI tables.
    pub acpi: bool,
}

/// Joins the measured command line with the engine's additions for `machine`.
///
/// # Errors
/// See [`CmdlineError`].
pub fn join(measured: &str, machine: Machine) -> Result<Cmdline, CmdlineError> {
    let measured = measured.trim_end_matches(['\n', '\0', ' ']);
    if !measured.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(CmdlineError::NotPrintable);
    }
    if measured.bytes().filter(|byte| *byte == b'"').count() % 2 != 0 {
        return Err(CmdlineError::OpenQuote);
    }
    let (kernel, init) = split_at_init_arguments(measured);
    let acpi = !words(kernel).any(|(_, word)| word == "acpi=off");
    if !acpi && !init.is_empty() {
        return Err(CmdlineError::HiddenDevices);
    }
    let line = [kernel, &additions(machine, acpi), init].join(" ");
    let line = line.trim().to_owned();
    let len = line.len() + if acpi { 0 } else { DEVICE_WORDS };
    if len >= MAX_LEN {
        return Err(CmdlineError::TooLong { len });
    }
    Ok(Cmdline { line, acpi })
}

/// Parameters that only the engine knows.
fn additions(machine: Machine, acpi: bool) -> String {
    let mut line = format!(
        "tsc_early_khz={} tsc=reliable no_timer_check cryptomgr.notests reboot=t panic=-1 \
         8250.nr_uarts=1 mitigations=off initcall_blacklist={SKIPPED_INITCALLS}",
        machine.tsc_khz
    );
    if machine.cpus == 1 {
        // Patching lock prefixes away costs more under TCG than it can save; with several CPUs it never happens.
        line.push_str(" noreplace-smp");
        if !acpi {
            // Finding the LAPIC timer's rate takes a quarter of the boot. The PIT's is known, but only a machine without ACPI
            // shows the kernel its PIT, and it serves one CPU.
            line.push_str(" nolapic_timer");
        }
    }
    line
}

/// The part before a bare `--` outside quotes, and the part from it on.
fn split_at_init_arguments(line: &str) -> (&str, &str) {
    let found = words(line).find(|(_, word)| *word == "--");
    found.map_or((line, ""), |(at, _)| line.split_at(at))
}

/// Words as the kernel sees them, spaces within quotes do not separate, each with its place.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut quoted = false;
    let split = move |c: char| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    };
    let mut at = 0;
    line.split(split).map(move |word| {
        let start = at;
        at += word.len() + 1;
        (start, word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        tsc_khz: 2_445_430,
        cpus: 1,
    };

    fn joined(measured: &str, machine: Machine) -> String {
        let cmdline = join(measured, machine).unwrap();
        assert!(cmdline.acpi);
        cmdline.line
    }

    #[test]
    fn an_image_without_acpi_gets_a_machine_without_it() {
        let cmdline = join("quiet acpi=off panic=1", MACHINE).unwrap();
        assert!(!cmdline.acpi);
        let start = "quiet acpi=off panic=1 tsc_early_khz=";
        assert!(cmdline.line.starts_with(start), "{}", cmdline.line);
        assert!(cmdline.line.ends_with(" noreplace-smp nolapic_timer"));
        let two = Machine { cpus: 2, ..MACHINE };
        assert!(!join("acpi=off", two).unwrap().line.contains("nolapic"));
        assert!(join("quiet a=\"b acpi=off c\"", MACHINE).unwrap().acpi);
        assert!(join("quiet -- acpi=off", MACHINE).unwrap().acpi);
        assert_eq!(
            join("acpi=off -- single", MACHINE),
            Err(CmdlineError::HiddenDevices)
        );
        let room =
            MAX_LEN - 1 - DEVICE_WORDS - "acpi=off ".len() - 1 - additions(MACHINE, false).len();
        assert!(join(&format!("acpi=off {}", "x".repeat(room)), MACHINE).is_ok());
        let error = join(&format!("acpi=off {}", "x".repeat(room + 1)), MACHINE).unwrap_err();
        assert_eq!(error, CmdlineError::TooLong { len: MAX_LEN });
    }

    #[test]
    fn the_engine_has_the_last_word() {
        let line = joined("console=ttyS0 tsc_early_khz=1\n", MACHINE);
        assert!(
            line.starts_with("console=ttyS0 tsc_early_khz=1 tsc_early_khz=2445430 "),
            "{line}"
        );
        assert!(line.ends_with(" noreplace-smp"));
    }

    #[test]
    fn several_cpus_keep_their_lock_prefixes() {
        let line = joined("", Machine { cpus: 2, ..MACHINE });
        assert!(!line.contains("noreplace-smp"));
        assert!(line.starts_with("tsc_early_khz="));
    }

    #[test]
    fn additions_go_before_the_arguments_of_init() {
        let line = joined("quiet -- verbose", MACHINE);
        assert!(line.ends_with(" -- verbose"), "{line}");
        let line = joined("quiet --", MACHINE);
        assert!(line.ends_with(" --"), "{line}");
        let line = joined("a=\"x -- y\" b--", MACHINE);
        assert!(
            line.starts_with("a=\"x -- y\" b-- tsc_early_khz="),
            "{line}"
        );
    }

    #[test]
    fn a_line_that_would_swallow_the_additions_is_refused() {
        assert_eq!(join("a=\"x", MACHINE), Err(CmdlineError::OpenQuote));
        assert_eq!(join("a\nb", MACHINE), Err(CmdlineError::NotPrintable));
        assert_eq!(join("a\u{e9}", MACHINE), Err(CmdlineError::NotPrintable));
    }

    #[test]
    fn the_length_limit_is_the_kernels() {
        let room = MAX_LEN - 1 - 1 - additions(MACHINE, true).len();
        assert_eq!(joined(&"x".repeat(room), MACHINE).len(), MAX_LEN - 1);
        let error = join(&"x".repeat(room + 1), MACHINE).unwrap_err();
        assert_eq!(error, CmdlineError::TooLong { len: MAX_LEN });
    }
}
