//! nitro-cli's error table: the one place that knows codes by number, and what `explain` says about each.
//!
//! Names and numbers are AWS's, since scripts match them. Meaning and cure are told for Enclos; codes that
//! only AWS's process model can produce say so.

/// One of AWS's error codes, `E00` to `E60`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(u8);

impl Code {
    pub(crate) const UNSPECIFIED: Self = Self(0);
    pub(crate) const MISSING_ARGUMENT: Self = Self(1);
    pub(crate) const CONFLICTING_ARGUMENT: Self = Self(2);
    pub(crate) const INVALID_ARGUMENT: Self = Self(3);
    pub(crate) const SERDE: Self = Self(17);
    pub(crate) const FILE_OPERATION: Self = Self(19);
    pub(crate) const EIF_PARSING: Self = Self(35);
    pub(crate) const DAEMON_ANSWER: Self = Self(38);
    pub(crate) const DAEMON_CONNECTION: Self = Self(39);
    pub(crate) const NO_SUCH_ENCLAVE: Self = Self(40);
    pub(crate) const CONSOLE_READ: Self = Self(45);
    pub(crate) const CONSOLE_WRITE: Self = Self(46);
    pub(crate) const EIF_BUILDING: Self = Self(48);
    pub(crate) const DOCKER_BUILD: Self = Self(49);
    pub(crate) const DOCKER_PULL: Self = Self(50);
    pub(crate) const BLOBS: Self = Self(52);
    pub(crate) const HASHER: Self = Self(57);
    pub(crate) const NAMING: Self = Self(58);
    pub(crate) const SIGNING: Self = Self(60);

    /// A code that a daemon sent; one that does not exist counts as unspecified.
    pub(crate) fn from_wire(number: u8) -> Self {
        if usize::from(number) < TABLE.len() {
            Self(number)
        } else {
            Self::UNSPECIFIED
        }
    }

    /// `E19`, `e19` or `19`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(['E', 'e']).unwrap_or(text);
        let number = digits.parse::<u8>().ok().filter(|_| digits.len() <= 2)?;
        (usize::from(number) < TABLE.len()).then_some(Self(number))
    }

    /// Exit status of the process: the number, except that E00 must not look like success.
    pub(crate) fn exit_status(self) -> u8 {
        self.0.max(1)
    }

    pub(crate) fn entry(self) -> &'static Entry {
        &TABLE[usize::from(self.0)]
    }

    /// Every code there is.
    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..=60).map(Self)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "E{:02}", self.0)
    }
}

/// What is known of one code.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) cause: &'static str,
    pub(crate) cure: &'static str,
}

const fn e(
    name: &'static str,
    meaning: &'static str,
    cause: &'static str,
    cure: &'static str,
) -> Entry {
    Entry {
        name,
        meaning,
        cause,
        cure,
    }
}

/// Cause of codes that exist for AWS's processes only.
const AWS_ONLY: &str = "Belongs to a part of AWS's implementation that Enclos does not have.";
const AWS_ONLY_CURE: &str = "Enclos never reports it; on an EC2 instance see AWS's documentation.";

const fn aws(name: &'static str, meaning: &'static str) -> Entry {
    e(name, meaning, AWS_ONLY, AWS_ONLY_CURE)
}

const DAEMON_LOG: &str =
    "Run `enclos status`; the hypervisor's log says more (`enclos status` prints its path).";

#[rustfmt::skip]
static TABLE: [Entry; 61] = [
    e("UnspecifiedError", "Something failed that has no code of its own.", "The message says what.", "Follow the hint below the message; `enclos doctor` checks the machine."),
    e("MissingArgument", "A mandatory argument is absent.", "An option, or a key of the --config file, was not given.", "Add it; `--help` lists the options."),
    e("ConflictingArgument", "Two arguments exclude each other.", "For example --cpu-count with --cpu-ids, in the options or in the --config file.", "Give one of them."),
    e("InvalidArgument", "An argument has a value that cannot be used.", "Not a number, out of range, or a --metadata file that is not JSON.", "Correct the value that the message names."),
    aws("SocketPairCreationFailure", "No socket pair between command and enclave process."),
    e("ProcessSpawnFailure", "A process could not be started.", "The engine's or the enclave's process cannot be executed (missing file, no permission, process limit), or the enclave's cgroup cannot be made.", "Run `enclos doctor`; it checks QEMU, Enclos's own binaries and cgroup v2."),
    aws("DaemonizeProcessFailure", "The enclave process could not detach."),
    e("ReadFromDiskFailure", "A directory of the installation cannot be read.", "Run or state directory missing or owned by someone else.", "Run `enclos status` to see which directories are used; correct their owner."),
    aws("UnusableConnectionError", "A connection was used after it was lost."),
    aws("SocketCloseError", "A connection could not be closed."),
    e("SocketConnectTimeoutError", "A connection was not made in time.", "The enclave's console or vsock did not answer.", "See whether the enclave still runs: `enclos describe-enclaves`."),
    e("SocketError", "A socket operation failed.", "The daemon or the enclave went away in the middle, or a descriptor limit was reached.", DAEMON_LOG),
    aws("EpollError", "Events could not be waited for."),
    aws("InotifyError", "The socket directory could not be watched."),
    e("InvalidCommand", "The daemon does not know the command.", "The command and the daemon are of different versions.", "Restart the daemons from the same build: `enclos down && enclos up`."),
    aws("LockAcquireFailure", "An internal lock was not taken."),
    aws("ThreadJoinFailure", "A thread ended badly."),
    e("SerdeError", "A message or a file is not the JSON that it should be.", "The --config file lacks a key or has a value of another type; or command and daemon are of different versions, or something else listens at the socket.", "Correct the file as the message says, or restart the daemons from the same build: `enclos down && enclos up`."),
    aws("FilePermissionsError", "The log file's mode could not be changed."),
    e("FileOperationFailure", "A file could not be opened, read or written.", "The message names the file and the operation.", "Correct the path or the permission."),
    e("InvalidCpuConfiguration", "The list of CPUs is not usable.", "A CPU id is listed twice, or no CPU was asked for.", "List each CPU once, or use --cpu-count."),
    e("NoSuchCpuAvailableInPool", "A CPU id is not available to enclaves.", "The id does not exist on this host or is not in the hypervisor's set.", "Use --cpu-count, or ids that `enclos doctor` lists."),
    e("InsufficientCpus", "More CPUs were asked for than there are.", "The host has fewer CPUs than --cpu-count.", "Ask for fewer. (CPUs are shared between enclaves where that is possible; then there is only a warning.)"),
    e("MalformedCpuId", "The host's list of online CPUs cannot be read.", "/sys/devices/system/cpu/online is missing or has an unknown form.", "Check that /sys is mounted."),
    e("CpuError", "The host's list of CPUs makes no sense.", "An interval in the list ends before it begins.", "Check that /sys is mounted."),
    aws("NoSuchHugepageFlag", "A huge page size is unknown."),
    e("InsufficientMemoryRequested", "The enclave asked for less memory than its image needs.", "The image is unpacked into the enclave's memory: the minimum is four times the EIF's size.", "Raise --memory to what the message says, or make the image smaller."),
    e("InsufficientMemoryAvailable", "The host has not enough memory left for enclaves.", "Other enclaves, or other programs, hold it.", "Lower --memory, stop an enclave (`enclos describe-enclaves`), or free memory on the host."),
    e("InvalidEnclaveFd", "The virtual machine could not be created.", "The engine did not start.", "Run `enclos doctor`."),
    e("IoctlFailure", "The kernel refused an operation on the virtual machine.", "KVM or another device of the engine failed.", "Run `enclos doctor`; it probes the engines by running code in a throw-away VM."),
    aws("IoctlImageLoadInfoFailure", "The driver did not say where images are loaded."),
    aws("IoctlSetMemoryRegionFailure", "A memory region was refused by the driver."),
    aws("IoctlAddVcpuFailure", "A vCPU was refused by the driver."),
    aws("IoctlEnclaveStartFailure", "The driver did not start the enclave."),
    e("MemoryOverflow", "The image does not fit where it must be loaded.", "Load address plus size exceeds the enclave's memory.", "Raise --memory."),
    e("EifParsingError", "The image cannot be used as an EIF.", "It cannot be opened, or is truncated, damaged, of an unknown version, or with sections that are not where they belong.", "See what `enclos describe-eif` finds in it; build it again."),
    e("EnclaveBootFailure", "The enclave did not report that it is ready.", "Its kernel or init failed, or the host was too slow for the boot timeout.", "Run it with --debug-mode --attach-console and read what the kernel says."),
    e("EnclaveEventWaitError", "The enclave could not be monitored.", "The hypervisor lost its event source.", DAEMON_LOG),
    e("EnclaveProcessCommandNotExecuted", "The daemon did not carry out the command.", "It closed the connection, or answered something else than was asked.", DAEMON_LOG),
    e("EnclaveProcessConnectionFailure", "The daemon cannot be reached.", "enclos-hypervisor or enclos-gateway does not run, uses another run directory, or its socket is not accessible to this user.", "Start the daemons with `enclos up`; if they run, set ENCLOS_RUN_DIR to their run directory."),
    e("SocketPathNotFound", "There is no such enclave.", "The id is misspelt, or the enclave has ended.", "See which there are: `enclos describe-enclaves`."),
    e("EnclaveProcessSendReplyFailure", "The daemon could not answer.", "The connection was closed before the reply.", DAEMON_LOG),
    e("EnclaveMmapError", "Memory for the enclave could not be mapped.", "Not enough memory, or an address space limit.", "Lower --memory or lift the limit (ulimit -v)."),
    aws("EnclaveMunmapError", "Memory could not be unmapped."),
    e("EnclaveConsoleConnectionFailure", "The console cannot be attached.", "The enclave does not run in debug mode: production enclaves have no console.", "To read what the application prints, build the image with `log_to_host = true` below `[app]` in enclos.toml (measured: other PCRs) and use `enclos logs`. For a console run it with --debug-mode (its PCR0, PCR1 and PCR2 are then zero, and no policy pinned to them will release a key)."),
    e("EnclaveConsoleReadError", "Reading from the console failed.", "The enclave ended in the middle.", "Ask for its end: `enclos wait`."),
    e("EnclaveConsoleWriteOutputError", "The console's output could not be written.", "Standard output is closed or the disk is full.", "Redirect the output somewhere else."),
    e("IntegerParsingError", "A number could not be read.", "The CID of the enclave is not a number.", DAEMON_LOG),
    e("EifBuildingError", "The image could not be built.", "An input is missing or not what it should be; the message says which.", "Correct the input; `enclos build --help` lists what is accepted."),
    e("DockerImageBuildError", "The container image could not be built.", "None of docker, podman and buildah is installed, or the build itself failed.", "Install one, or build from a root file system or an OCI archive, which needs none."),
    e("DockerImagePullError", "The container image could not be fetched.", "The name is misspelt, the registry cannot be reached, or no container tool is installed.", "Save the image elsewhere and build from the file: `--docker-uri docker-archive:image.tar`."),
    e("ArtifactsPathNotSet", "There is no directory for intermediate files.", "Neither NITRO_CLI_ARTIFACTS nor HOME is set.", "Set HOME or TMPDIR."),
    e("BlobsPathNotSet", "Kernel or runtime for the image were not found.", "No kernel is in the cache, or the guest binaries are not beside the executable.", "Run `enclos kernel fetch`; set ENCLOS_GUEST_DIR to the directory with `enclos-init` and `enclos-agent`."),
    aws("ClockSkewError", "Time could not be measured."),
    aws("SignalMaskingError", "Signals could not be masked."),
    aws("SignalUnmaskingError", "Signals could not be unmasked."),
    aws("LoggerError", "The logger could not be set up."),
    e("HasherError", "What is to be measured could not be hashed.", "The file of --signing-certificate is not a PEM certificate.", "Convert it, `openssl x509 -inform DER -in FILE -out cert.pem`, or name another file."),
    e("EnclaveNamingError", "The name is not usable.", "No enclave has this name, or it holds characters that a name cannot have.", "See which there are: `enclos describe-enclaves`."),
    e("EIFSignatureCheckerError", "The image's signature does not hold.", "The signing certificate has expired, or the signature belongs to other content.", "Sign the image again: `enclos sign-eif`."),
    e("EIFSigningError", "The image could not be signed.", "Certificate or key are missing, not PEM, of an unsupported curve, or do not belong together; or the KMS or token that has the key does not sign.", "Give a PEM certificate and the private key that belongs to it: a PEM file, a KMS key's ARN with credentials, or a pkcs11: URI with its PIN."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_nitro_cli_reads_them() {
        assert_eq!(Code::parse("E19"), Some(Code::FILE_OPERATION));
        assert_eq!(Code::parse("E60"), Some(Code(60)));
        assert_eq!(
            Code::parse("e05").map(|code| code.to_string()).as_deref(),
            Some("E05")
        );
        for bad in ["E61", "", "E", "E019", "X19", "E-1", "Eab"] {
            assert_eq!(Code::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_code_exits_like_success_and_numbers_are_statuses() {
        assert_eq!(Code::UNSPECIFIED.exit_status(), 1);
        assert!(
            Code::all()
                .skip(1)
                .all(|code| code.to_string() == format!("E{:02}", code.exit_status()))
        );
        assert_eq!(Code::from_wire(61), Code::UNSPECIFIED);
        assert_eq!(Code::from_wire(60), Code(60));
    }

    #[test]
    fn every_entry_says_everything() {
        assert_eq!(Code::EIF_PARSING.entry().name, "EifParsingError");
        assert_eq!(
            Code::DAEMON_CONNECTION.entry().name,
            "EnclaveProcessConnectionFailure"
        );
        assert_eq!(Code::NAMING.entry().name, "EnclaveNamingError");
        for entry in Code::all().map(Code::entry) {
            assert!(
                entry.meaning.ends_with('.') && entry.cause.ends_with('.'),
                "{}",
                entry.name
            );
            assert!(!entry.cure.is_empty());
        }
    }
}
