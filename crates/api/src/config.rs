//! Configuration that is read by another program than the one that wrote it.
//!
//! [`EnclaveConfig`] is written by `enclos build` into ramdisk 1 at [`ENCLAVE_CONFIG_PATH`] and read by init
//! and agent: it is part of the measurement (PCR0, PCR2). [`HostConfig`] is the operator's file on the host.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the guest finds its [`EnclaveConfig`], as JSON.
pub const ENCLAVE_CONFIG_PATH: &str = "/enclos/config.json";

/// Where the guest finds the application's root file system.
pub const ROOTFS_PATH: &str = "/rootfs";

/// Where the guest finds the agent.
pub const AGENT_PATH: &str = "/enclos/agent";

/// Where the guest finds its kernel modules; `modules.order` there names one file per line, in load order.
pub const MODULES_PATH: &str = "/enclos/modules";

/// In the hypervisor's state directory: the attestation CA's keys and certificates, PEM.
pub const CA_KEYS: &str = "ca.pem";

/// Beside it: the root certificate that documents begin with, PEM.
pub const CA_ROOT: &str = "root.pem";

/// Beside it, for as long as the hypervisor has not taken it: the region's next key and certificate, which a root whose key
/// is kept in a token signed.
pub const CA_REGION: &str = "region.pem";

/// Beside it: locked by whoever may write the others.
pub const CA_LOCK: &str = "ca.lock";

/// The measured configuration of an enclave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnclaveConfig {
    /// [`crate::PROTOCOL_VERSION`] of the builder.
    pub version: u32,
    /// How the application is started.
    pub process: Process,
    /// TCP ports of the application that the parent may reach, each as the vsock port of the same number.
    pub ingress: Vec<u16>,
    /// Those of them where the agent ends attested TLS: the parent sees ciphertext, the application what is inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attested_tls: Vec<u16>,
    /// The KMS, when the enclave uses one.
    pub kms: Option<Kms>,
}

/// How the application is started, with the semantics of an OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Entrypoint followed by Cmd; never empty.
    pub argv: Vec<String>,
    /// `NAME=value`; values may hold newlines.
    pub env: Vec<String>,
    /// Working directory in the root file system.
    pub cwd: String,
    /// OCI `User`: empty, `name`, `uid`, `name:group`, `uid:gid`.
    pub user: String,
    /// Signal that asks the application to stop, as [`crate::signal`] reads it.
    pub stop_signal: String,
    /// Whether standard output and error go to the enclave's log on the host, in production too. Whoever pins the image
    /// pins this. Not written when it is off, so that images without it have the bytes that they always had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log_to_host: bool,
}

/// The KMS that the agent talks to. TLS ends in the agent and trusts `ca_pem` alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kms {
    /// Region for signatures and for `AWS_REGION` in the application's environment.
    pub region: String,
    /// Name in the KMS's certificate.
    pub server_name: String,
    /// One or more PEM certificates: the only roots the agent accepts for the KMS.
    pub ca_pem: String,
    /// Key ARNs that replies may name; empty means any.
    #[serde(default)]
    pub key_arns: Vec<String>,
    /// Whether the KMS takes documents for Sign, Verify, GenerateMac and VerifyMac too: Enclos's extension, which AWS has not,
    /// so that nothing but the image's author can know it. Not written when it is off, so that images without it have the
    /// bytes that they always had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attested_signing: bool,
}

/// The operator's host file, `host.toml`: read by `enclos-hypervisor` and `enclos-gateway`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Who this host says it is.
    pub instance: Instance,
    /// The role of this host, if any.
    pub role: Option<Role>,
    /// The KMS that enclaves reach through the gateway.
    pub kms: Option<KmsAddress>,
}

/// Who this host says it is (PCR4, certificates, IMDS).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// `i-` and 17 hex digits.
    pub id: String,
    /// Region.
    pub region: String,
    /// Availability zone.
    pub availability_zone: String,
    /// Account, twelve digits.
    pub account_id: String,
}

/// The IAM role of the host (PCR3) and where its credentials are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Role ARN, hashed into PCR3.
    pub arn: String,
    /// File that the gateway reads at each request, so that rotation needs no restart: JSON with
    /// `AccessKeyId`, `SecretAccessKey`, optional `SessionToken` and `Expiration` (the shape of the SDKs'
    /// `credential_process`).
    pub credentials_file: Option<PathBuf>,
}

/// Where the gateway's tunnel to the KMS ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KmsAddress {
    /// TCP address.
    pub address: SocketAddr,
}
