//! What the guest says to its host over vsock, and on which ports.
//!
//! The guest dials CID 3, as on Nitro. Ports 9000, 9001 and 9003 are answered by `enclos-vmm` itself; every other
//! port leads to a unix socket `<vsock>_<port>` on the host, where the gateway listens on [`KMS_PORT`] and
//! [`FACTS_PORT`].

use serde::{Deserialize, Serialize};

/// Context id of the parent as the guest sees it.
pub const PARENT_CID: u32 = 3;

/// AWS's heartbeat port: init sends [`HEARTBEAT`] and waits for the same byte.
pub const HEARTBEAT_PORT: u32 = 9000;

/// The heartbeat byte (AWS's `init` sends 0xB7 to CID 3, port 9000).
pub const HEARTBEAT: u8 = 0xB7;

/// Life-cycle reports of `enclos-init`: one connection, open for the enclave's life, carrying [`Report`]
/// frames from the guest. The host first sends one [`Welcome`], later [`HostWord`]s.
pub const LIFECYCLE_PORT: u32 = 9001;

/// Instance facts: a connection carries one [`FactsRequest`] and one [`FactsReply`].
pub const FACTS_PORT: u32 = 9002;

/// Output of the application, when its image's configuration says so ([`crate::config::Process::log_to_host`]): raw bytes
/// from the guest, answered by `enclos-vmm` itself with the end of the stream once all of it is in the enclave's log.
pub const APP_LOG_PORT: u32 = 9003;

/// Tunnel to the KMS, raw bytes (the port of AWS's vsock-proxy service).
pub const KMS_PORT: u32 = 8000;

/// The host's first word on [`LIFECYCLE_PORT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`crate::PROTOCOL_VERSION`] of the host.
    pub protocol: u32,
    /// The hypervisor's clock, nanoseconds since the Unix epoch.
    pub unix_time_ns: u64,
}

/// What the host says on [`LIFECYCLE_PORT`] after its welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub enum HostWord {
    /// The operator wants the enclave stopped: the application gets its stop signal, and SIGKILL after this many
    /// seconds. A guest that goes on all the same is killed from outside.
    Stop {
        /// Seconds.
        grace_s: u32,
    },
}

/// What init reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// The application's process exists.
    AppStarted,
    /// The application accepts connections on this port.
    AppReady {
        /// TCP port.
        port: u16,
    },
    /// The enclave is about to stop.
    Exited {
        /// Exit status of the application.
        status: Option<i32>,
        /// Signal that ended it.
        signal: Option<i32>,
        /// One sentence; "cannot execute /app: No such file or directory", for example.
        reason: String,
    },
}

/// What the agent asks of the parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FactsRequest {
    /// Instance and role.
    Facts,
}

/// The parent's answer. Nothing in it is trusted for security: it is what an EC2 parent could say too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FactsReply {
    /// The facts.
    Ok(Box<InstanceFacts>),
    /// Why there are none.
    Error(String),
}

/// What IMDS tells about an instance.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFacts {
    /// `i-…`.
    pub instance_id: String,
    /// Region such as `us-east-1`.
    pub region: String,
    /// Availability zone such as `us-east-1a`.
    pub availability_zone: String,
    /// Twelve digits.
    pub account_id: String,
    /// Such as `m5.xlarge`.
    pub instance_type: String,
    /// Private IPv4 address of the parent.
    pub private_ip: String,
    /// The role, if the instance has one.
    pub role: Option<RoleFacts>,
}

/// A role and its credentials of the moment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleFacts {
    /// Role ARN.
    pub arn: String,
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
    /// Session token, when the credentials are temporary.
    pub session_token: Option<String>,
    /// RFC 3339 expiry.
    pub expiration: String,
}

impl std::fmt::Debug for InstanceFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceFacts")
            .field("instance_id", &self.instance_id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// Secrets stay out of logs.
impl std::fmt::Debug for RoleFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleFacts")
            .field("arn", &self.arn)
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}
