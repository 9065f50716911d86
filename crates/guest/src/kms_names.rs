//! The names under which SDKs look for KMS in a region, and the addresses the agent answers on.

use std::net::Ipv4Addr;

/// Instance metadata.
pub const IMDS_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// KMS endpoint and names.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 3);

/// Region prefix and domain of the partitions; the first match counts, the last matches everything.
const DOMAINS: [(&str, &str); 7] = [
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("us-iso-", "c2s.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("", "amazonaws.com"),
];

/// Every name of KMS in `region`: standard, FIPS, and the dual-stack forms of both.
#[must_use]
pub fn names(region: &str) -> Vec<String> {
    let domain = DOMAINS
        .iter()
        .find(|(prefix, _)| region.starts_with(prefix));
    let domain = domain.map_or("amazonaws.com", |(_, domain)| domain);
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
}
