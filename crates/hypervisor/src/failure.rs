//! Refusals and failures in the numbers of nitro-cli's error table, so that scripts keep working.

use enclos_api::control::Failure;

/// A number of AWS's table. Only those that this hypervisor gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// An argument that is out of its range.
    InvalidArgument = 3,
    /// `enclos-vmm` could not be started.
    ProcessSpawn = 5,
    /// A request that this hypervisor does not know, or that the caller may not make.
    InvalidCommand = 14,
    /// A message that is not JSON of the expected shape.
    Serde = 17,
    /// A file could not be read or written.
    FileOperation = 19,
    /// CPU ids given twice.
    InvalidCpuConfiguration = 20,
    /// A CPU id that this host does not have.
    NoSuchCpu = 21,
    /// More vCPUs than this host can give.
    InsufficientCpus = 22,
    /// Less memory asked for than the image needs.
    InsufficientMemoryRequested = 26,
    /// More memory asked for than is left.
    InsufficientMemoryAvailable = 27,
    /// The image is not a valid EIF.
    EifParsing = 35,
    /// The enclave did not come up.
    Boot = 36,
    /// No enclave with that id.
    NoSuchEnclave = 40,
    /// No console: not in debug mode.
    Console = 44,
    /// A name that is invalid, or unknown.
    Naming = 58,
    /// The image's signature does not hold.
    Signature = 59,
}

impl Code {
    /// The failure with this number.
    #[must_use]
    pub fn because(self, message: impl Into<String>) -> Failure {
        Failure {
            code: self as u8,
            message: message.into(),
        }
    }
}
