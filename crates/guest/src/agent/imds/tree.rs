//! The leaves of the metadata tree, and its listings.

use std::collections::BTreeMap;

use enclos_api::guest::{InstanceFacts, RoleFacts};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::kms_names::{domain, partition};

/// Path of the attestation document, which is made when it is asked for.
pub const ATTESTATION: &str = "meta-data/enclave-attestation-document";

/// Path prefix of the role's credentials.
const CREDENTIALS: &str = "meta-data/iam/security-credentials/";

/// The processor, as EC2 names it.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "x86_64"
};

/// All leaves by path.
#[derive(Debug)]
pub struct Tree {
    leaves: BTreeMap<String, String>,
}

impl Tree {
    /// The tree that these facts make.
    #[must_use]
    pub fn new(facts: &InstanceFacts) -> Self {
        let mut leaves = BTreeMap::new();
        let hostname = format!(
            "ip-{}.{}.compute.internal",
            facts.private_ip.replace('.', "-"),
            facts.region
        );
        for (path, value) in [
            ("meta-data/hostname", hostname.as_str()),
            ("meta-data/instance-id", &facts.instance_id),
            ("meta-data/instance-life-cycle", "on-demand"),
            ("meta-data/instance-type", &facts.instance_type),
            ("meta-data/local-hostname", &hostname),
            ("meta-data/local-ipv4", &facts.private_ip),
            (
                "meta-data/placement/availability-zone",
                &facts.availability_zone,
            ),
            ("meta-data/placement/region", &facts.region),
            ("meta-data/services/domain", domain(&facts.region)),
            ("meta-data/services/partition", partition(&facts.region)),
            (ATTESTATION, ""),
        ] {
            leaves.insert(path.to_owned(), value.to_owned());
        }
        leaves.insert(
            "dynamic/instance-identity/document".to_owned(),
            identity(facts),
        );
        if let Some(role) = &facts.role {
            let name = role_name(&role.arn);
            leaves.insert("meta-data/iam/info".to_owned(), iam_info(facts, name));
            leaves.insert(format!("{CREDENTIALS}{name}"), credentials(role));
        }
        Self { leaves }
    }

    /// The value at a path, or the listing of what is below it, or nothing.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<String> {
        if let Some(value) = self.leaves.get(path) {
            return Some(value.clone());
        }
        let prefix = match path.trim_end_matches('/') {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let below = self
            .leaves
            .keys()
            .filter_map(|leaf| leaf.strip_prefix(&prefix));
        let mut names: Vec<String> = below
            .map(|rest| {
                rest.split_once('/')
                    .map_or_else(|| rest.to_owned(), |(dir, _)| format!("{dir}/"))
            })
            .collect();
        names.dedup();
        (!names.is_empty()).then(|| names.join("\n"))
    }
}

/// The last part of a role's ARN, paths left out.
fn role_name(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0)
        .unwrap_or(now)
        .format(&Rfc3339)
        .unwrap_or_default()
}

fn iam_info(facts: &InstanceFacts, name: &str) -> String {
    pretty(&json!({
        "Code": "Success",
        "LastUpdated": now(),
        "InstanceProfileArn": format!("arn:{}:iam::{}:instance-profile/{name}",
            partition(&facts.region), facts.account_id),
        "InstanceProfileId": "AIPAENCLOS0000000000",
    }))
}

fn credentials(role: &RoleFacts) -> String {
    pretty(&json!({
        "Code": "Success",
        "LastUpdated": now(),
        "Type": "AWS-HMAC",
        "AccessKeyId": role.access_key_id,
        "SecretAccessKey": role.secret_access_key,
        "Token": role.session_token.as_deref().unwrap_or_default(),
        "Expiration": role.expiration,
    }))
}

fn identity(facts: &InstanceFacts) -> String {
    pretty(&json!({
        "accountId": facts.account_id,
        "architecture": ARCHITECTURE,
        "availabilityZone": facts.availability_zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": null,
        "instanceId": facts.instance_id,
        "instanceType": facts.instance_type,
        "kernelId": null,
        "pendingTime": null,
        "privateIp": facts.private_ip,
        "ramdiskId": null,
        "region": facts.region,
        "version": "2017-09-30",
    }))
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(role: bool) -> InstanceFacts {
        InstanceFacts {
            instance_id: "i-0123456789abcdef0".into(),
            region: "us-gov-west-1".into(),
            availability_zone: "us-gov-west-1a".into(),
            account_id: "000000000000".into(),
            instance_type: "enclos.host".into(),
            private_ip: "10.0.0.7".into(),
            role: role.then(|| RoleFacts {
                arn: "arn:aws:iam::000000000000:role/team/parent".into(),
                access_key_id: "AKIA".into(),
                secret_access_key: "secret".into(),
                session_token: None,
                expiration: "2030-01-01T00:00:00Z".into(),
            }),
        }
    }

    #[test]
    fn listings_mark_what_has_more_below() {
        let tree = Tree::new(&facts(true));
        assert_eq!(tree.get("").unwrap(), "dynamic/\nmeta-data/");
        assert_eq!(
            tree.get("meta-data/iam/").unwrap(),
            "info\nsecurity-credentials/"
        );
        assert_eq!(
            tree.get("meta-data/iam/security-credentials").unwrap(),
            "parent"
        );
        assert!(
            tree.get("meta-data")
                .unwrap()
                .contains("enclave-attestation-document\n")
        );
        assert_eq!(
            tree.get("meta-data/placement/region").unwrap(),
            "us-gov-west-1"
        );
        assert_eq!(
            tree.get("meta-data/services/partition").unwrap(),
            "aws-us-gov"
        );
    }

    #[test]
    fn domain_and_partition_are_the_regions() {
        let mut facts = facts(true);
        facts.region = "cn-north-1".into();
        let tree = Tree::new(&facts);
        let get = |path: &str| tree.get(path).unwrap();
        assert_eq!(get("meta-data/services/domain"), "amazonaws.com.cn");
        assert_eq!(get("meta-data/services/partition"), "aws-cn");
        assert!(get("meta-data/iam/info").contains("arn:aws-cn:iam::"));
    }

    #[test]
    fn credentials_have_the_shape_that_sdks_read() {
        let text = Tree::new(&facts(true))
            .get("meta-data/iam/security-credentials/parent")
            .unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["Code"], "Success");
        assert_eq!(value["Token"], "");
        assert_eq!(value["SecretAccessKey"], "secret");
        assert!(value["LastUpdated"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn what_does_not_exist_is_not_there() {
        let tree = Tree::new(&facts(false));
        for path in [
            "meta-data/iam",
            "meta-data/iam/security-credentials/",
            "user-data",
            "meta",
        ] {
            assert_eq!(tree.get(path), None, "{path}");
        }
    }
}
