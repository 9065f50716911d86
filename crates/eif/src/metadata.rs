//! The metadata section: JSON that tells people where an image came from.
//!
//! Nothing measures it, so nothing may be decided by it. Field order is AWS's and part of the bytes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The metadata section of version 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metadata {
    /// Name of the image.
    pub image_name: String,
    /// Version of the image.
    pub image_version: String,
    /// How it was built.
    pub build_metadata: BuildMetadata,
    /// What is known of the container image that it was made of; an empty object where there was none.
    pub docker_info: Value,
    /// The user's own.
    #[serde(default)]
    pub custom_metadata: Value,
}

/// How an image was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BuildMetadata {
    /// RFC 3339, UTC.
    pub build_time: String,
    /// Name of the builder.
    pub build_tool: String,
    /// Version of the builder.
    pub build_tool_version: String,
    /// Operating system of the kernel.
    pub operating_system: String,
    /// Version of the kernel.
    pub kernel_version: String,
}
