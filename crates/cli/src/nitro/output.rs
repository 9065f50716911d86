//! nitro-cli's JSON: key order and types are AWS's, since scripts read them.

use std::collections::BTreeMap;

use enclos_api::control::{Enclave, Measurements, State};
use enclos_eif::CertificateInfo;
use serde::Serialize;
use serde_json::Value;

/// What every AWS document shows as the algorithm: the debug print of a hasher. Scripts may compare it.
const HASH_ALGORITHM: &str = "Sha384 { ... }";

/// PCR values with AWS's keys.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    #[serde(rename = "HashAlgorithm")]
    hash_algorithm: &'static str,
    #[serde(rename = "PCR0")]
    pcr0: String,
    #[serde(rename = "PCR1")]
    pcr1: String,
    #[serde(rename = "PCR2")]
    pcr2: String,
    #[serde(rename = "PCR8", skip_serializing_if = "Option::is_none")]
    pcr8: Option<String>,
}

impl From<Measurements> for Measured {
    fn from(pcrs: Measurements) -> Self {
        let Measurements {
            pcr0,
            pcr1,
            pcr2,
            pcr8,
        } = pcrs;
        Self {
            hash_algorithm: HASH_ALGORITHM,
            pcr0,
            pcr1,
            pcr2,
            pcr8,
        }
    }
}

impl From<&enclos_eif::Measurements> for Measured {
    fn from(pcrs: &enclos_eif::Measurements) -> Self {
        Measurements {
            pcr0: pcrs.pcr0.to_string(),
            pcr1: pcrs.pcr1.to_string(),
            pcr2: pcrs.pcr2.to_string(),
            pcr8: pcrs.pcr8.map(|pcr8| pcr8.to_string()),
        }
        .into()
    }
}

impl Measured {
    /// Numbers and values of the registers that an image has.
    pub(crate) fn registers(&self) -> Vec<(u8, &str)> {
        let pcrs = [(0, &self.pcr0), (1, &self.pcr1), (2, &self.pcr2)].into_iter();
        let pcr8 = self.pcr8.iter().map(|pcr8| (8, pcr8));
        pcrs.chain(pcr8)
            .map(|(index, value)| (index, value.as_str()))
            .collect()
    }

    /// What a running enclave attests: zeros in debug mode, whatever its image measures.
    fn attested(enclave: &Enclave) -> Self {
        if !enclave.debug {
            return enclave.measurements.clone().into();
        }
        let zero = || "0".repeat(96);
        let pcr8 = enclave.measurements.pcr8.as_ref().map(|_| zero());
        Measurements {
            pcr0: zero(),
            pcr1: zero(),
            pcr2: zero(),
            pcr8,
        }
        .into()
    }
}

/// What `run-enclave` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Started {
    #[serde(rename = "EnclaveName")]
    name: String,
    #[serde(rename = "EnclaveID")]
    id: String,
    #[serde(rename = "ProcessID")]
    pid: u32,
    #[serde(rename = "EnclaveCID")]
    cid: u32,
    #[serde(rename = "NumberOfCPUs")]
    cpus: u32,
    #[serde(rename = "CPUIDs")]
    cpu_ids: Vec<u32>,
    #[serde(rename = "MemoryMiB")]
    memory_mib: u64,
}

impl From<&Enclave> for Started {
    fn from(enclave: &Enclave) -> Self {
        Self {
            name: enclave.name.clone(),
            id: enclave.id.clone(),
            pid: enclave.pid,
            cid: enclave.cid,
            cpus: enclave.cpu_count,
            cpu_ids: enclave.cpu_ids.clone(),
            memory_mib: enclave.memory_mib,
        }
    }
}

/// One element of what `describe-enclaves` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Described {
    #[serde(flatten)]
    started: Started,
    #[serde(rename = "State")]
    state: State,
    #[serde(rename = "Flags")]
    flags: &'static str,
    #[serde(rename = "Measurements")]
    measurements: Measured,
    #[serde(flatten)]
    image: Option<Image>,
}

impl Described {
    pub(crate) fn new(enclave: &Enclave, metadata: bool) -> Self {
        Self {
            started: enclave.into(),
            state: enclave.state,
            flags: if enclave.debug { "DEBUG_MODE" } else { "NONE" },
            measurements: Measured::attested(enclave),
            image: metadata.then(|| Image::from_metadata(&enclave.image)),
        }
    }
}

/// Name, version and metadata of an image, as its unmeasured metadata section says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Image {
    image_name: Value,
    image_version: Value,
    metadata: Ordered,
}

/// An object whose keys keep their order.
#[derive(Debug, Default)]
struct Ordered(Vec<(String, Value)>);

/// Keys of the build metadata, in AWS's order.
const BUILD_KEYS: [&str; 5] = [
    "BuildTime",
    "BuildTool",
    "BuildToolVersion",
    "OperatingSystem",
    "KernelVersion",
];

impl Ordered {
    /// Of two equal keys the earlier stays.
    fn add(&mut self, key: &str, value: &Value) {
        if !self.0.iter().any(|(known, _)| known == key) {
            self.0.push((key.to_owned(), value.clone()));
        }
    }

    fn add_all(&mut self, object: Option<&Value>) {
        for (key, value) in object.and_then(Value::as_object).into_iter().flatten() {
            self.add(key, value);
        }
    }
}

impl Serialize for Ordered {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl Image {
    /// From the metadata section. AWS flattens build metadata, container information and the user's own keys into one
    /// object.
    pub(crate) fn from_metadata(section: &Value) -> Self {
        let field = |name: &str| section.get(name).cloned().unwrap_or_default();
        let build = section.get("BuildMetadata");
        let mut metadata = Ordered::default();
        for key in BUILD_KEYS {
            metadata.add(
                key,
                build
                    .and_then(|build| build.get(key))
                    .unwrap_or(&Value::Null),
            );
        }
        metadata.add_all(build);
        metadata.add("DockerInfo", &field("DockerInfo"));
        metadata.add_all(section.get("CustomMetadata"));
        Self {
            image_name: field("ImageName"),
            image_version: field("ImageVersion"),
            metadata,
        }
    }
}

/// What `terminate-enclave` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Terminated {
    #[serde(rename = "EnclaveName")]
    pub(crate) name: String,
    #[serde(rename = "EnclaveID")]
    pub(crate) id: String,
    #[serde(rename = "Terminated")]
    pub(crate) terminated: bool,
}

/// What `describe-eif` prints.
#[derive(Debug, Serialize)]
pub(crate) struct DescribedEif {
    #[serde(rename = "EifVersion")]
    version: u16,
    #[serde(rename = "Measurements")]
    measurements: Measured,
    #[serde(rename = "IsSigned")]
    is_signed: bool,
    #[serde(rename = "SigningCertificate", skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate>,
    #[serde(rename = "CheckCRC")]
    crc: bool,
    #[serde(rename = "SignatureCheck", skip_serializing_if = "Option::is_none")]
    signature: Option<bool>,
    #[serde(flatten)]
    image: Option<Image>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Certificate {
    issuer_name: BTreeMap<String, String>,
    algorithm: String,
    not_before: String,
    not_after: String,
    signature: String,
}

impl From<enclos_eif::Report> for DescribedEif {
    fn from(report: enclos_eif::Report) -> Self {
        Self {
            version: report.version,
            measurements: (&report.measurements).into(),
            is_signed: report.is_signed,
            certificate: report.certificate.map(Into::into),
            crc: report.crc_ok,
            signature: report.signature_ok,
            image: report.metadata.as_ref().map(Image::from_metadata),
        }
    }
}

impl From<CertificateInfo> for Certificate {
    fn from(info: CertificateInfo) -> Self {
        Self {
            issuer_name: info.issuer,
            algorithm: info.algorithm,
            not_before: info.not_before,
            not_after: info.not_after,
            signature: info.signature,
        }
    }
}
