//! Which crate of the workspace may depend on which: the design's section on the workspace, executable.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::Shell;
use crate::workspace::Workspace;

/// Crate and what it may depend on. Leaves first; who is missing here may not exist.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("enclos-attest", &[]),
    ("enclos-api", &[]),
    ("enclos-token", &[]),
    // The API for its feature `build` alone: assembling an image writes the guest's configuration.
    ("enclos-eif", &["enclos-attest", "enclos-api"]),
    ("enclos-client", &["enclos-attest"]),
    (
        "enclos-hypervisor",
        &["enclos-attest", "enclos-eif", "enclos-api"],
    ),
    ("enclos-guest", &["enclos-attest", "enclos-api"]),
    ("enclos-gateway", &["enclos-api"]),
    (
        "enclos-kms",
        &["enclos-attest", "enclos-api", "enclos-token"],
    ),
    (
        "enclos-cli",
        &[
            "enclos-attest",
            "enclos-api",
            "enclos-eif",
            "enclos-client",
            "enclos-token",
        ],
    ),
    (
        "enclos-e2e",
        &["enclos-attest", "enclos-api", "enclos-eif", "enclos-client"],
    ),
    ("xtask", &[]),
];

/// Checks normal and build dependencies; tests may reach further.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let cargo = Shell::cargo(workspace);
    let metadata = cargo
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .read()?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists packages")?;
    let wrong = packages.iter().flat_map(violations).collect::<Vec<_>>();
    if !wrong.is_empty() {
        bail!(
            "the design's direction of dependencies is broken:\n  {}",
            wrong.join("\n  ")
        );
    }
    Ok(())
}

fn violations(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let rules: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let Some(allowed) = rules.get(name) else {
        return vec![format!("{name} is not in xtask's list of crates")];
    };
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies
        .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
        .filter_map(|dependency| dependency["name"].as_str())
        .filter(|other| rules.contains_key(other) && !allowed.contains(other))
        .map(|other| format!("{name} must not depend on {other}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependency: &str, kind: Option<&str>) -> Value {
        json!({"name": name, "dependencies": [{"name": dependency, "kind": kind}]})
    }

    #[test]
    fn only_the_listed_direction_passes() {
        assert!(violations(&package("enclos-eif", "enclos-attest", None)).is_empty());
        assert!(violations(&package("enclos-eif", "serde", None)).is_empty());
        let wrong = violations(&package("enclos-attest", "enclos-eif", None));
        assert_eq!(wrong, ["enclos-attest must not depend on enclos-eif"]);
        assert!(!violations(&package("enclos-attest", "enclos-eif", Some("build"))).is_empty());
    }

    #[test]
    fn tests_may_reach_further() {
        assert!(violations(&package("enclos-kms", "enclos-client", Some("dev"))).is_empty());
    }

    #[test]
    fn an_unknown_crate_is_named() {
        assert!(violations(&package("enclos-new", "serde", None))[0].contains("enclos-new"));
    }
}
