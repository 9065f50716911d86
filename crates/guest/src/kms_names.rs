//! What follows from a region: its partition, and the names under which SDKs look for KMS there; and the addresses the agent
//! answers on.

use std::net::Ipv4Addr;

/// Instance metadata.
pub const IMDS_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// KMS endpoint and names.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 3);

/// Prefix of a partition's regions, its name and its domain; the first match counts, the last matches everything.
const PARTITIONS: [(&str, &str, &str); 8] = [
    ("cn-", "aws-cn", "amazonaws.com.cn"),
    ("eusc-", "aws-eusc", "amazonaws.eu"),
    ("us-gov-", "aws-us-gov", "amazonaws.com"),
    ("us-isob-", "aws-iso-b", "sc2s.sgov.gov"),
    ("us-isof-", "aws-iso-f", "csp.hci.ic.gov"),
    ("us-iso-", "aws-iso", "c2s.ic.gov"),
    ("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk"),
    ("", "aws", "amazonaws.com"),
];

fn of(region: &str) -> (&'static str, &'static str) {
    let found = PARTITIONS
        .iter()
        .find(|(prefix, ..)| region.starts_with(prefix));
    found.map_or(("aws", "amazonaws.com"), |(_, name, domain)| (name, domain))
}

/// The partition that a region is in, as it stands in ARNs.
#[must_use]
pub fn partition(region: &str) -> &'static str {
    of(region).0
}

/// The domain of services in a region.
#[must_use]
pub fn domain(region: &str) -> &'static str {
    of(region).1
}

/// Every name of KMS in `region`: standard, FIPS, and the dual-stack forms of both.
#[must_use]
pub fn names(region: &str) -> Vec<String> {
    let domain = domain(region);
    let mut names = vec![
        format!("kms.{region}.{domain}"),
        format!("kms-fips.{region}.{domain}"),
    ];
    if domain == "amazonaws.com" {
        names.push(format!("kms.{region}.api.aws"));
        names.push(format!("kms-fips.{region}.api.aws"));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_its_domain() {
        assert_eq!(names("us-east-1")[0], "kms.us-east-1.amazonaws.com");
        assert_eq!(
            names("us-gov-west-1")[1],
            "kms-fips.us-gov-west-1.amazonaws.com"
        );
        assert_eq!(names("cn-north-1")[0], "kms.cn-north-1.amazonaws.com.cn");
        assert_eq!(
            names("us-isob-east-1")[0],
            "kms.us-isob-east-1.sc2s.sgov.gov"
        );
        assert_eq!(names("us-iso-east-1")[0], "kms.us-iso-east-1.c2s.ic.gov");
    }

    #[test]
    fn each_region_has_its_partition() {
        for (region, expected) in [
            ("us-east-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eusc-de-east-1", "aws-eusc"),
            ("nowhere", "aws"),
        ] {
            assert_eq!(partition(region), expected, "{region}");
        }
    }
}
