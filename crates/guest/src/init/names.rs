//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of the application.

use enclos_api::config::Kms;

use crate::kms_names;

/// Host name of an image that gives none.
const DEFAULT_HOSTNAME: &str = "enclave";

/// Longest host name the kernel takes, `__NEW_UTS_LEN`.
const MAX_HOSTNAME: usize = 64;

/// The agent answers names; there is no other server to ask.
pub(super) const RESOLV_CONF: &str = "nameserver 169.254.170.3\noptions timeout:2 attempts:2\n";

/// The image's host name, if it has one that is fit to be one.
pub(super) fn hostname(image: Option<&str>) -> String {
    let name = image.unwrap_or_default().trim();
    let fit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let good = !name.is_empty() && name.len() <= MAX_HOSTNAME && name.chars().all(fit);
    if good {
        name.to_owned()
    } else {
        DEFAULT_HOSTNAME.to_owned()
    }
}

/// The image's own lines, then what it lacks: `localhost`, the host name and the names of the KMS.
pub(super) fn hosts(image: Option<&str>, hostname: &str, kms: Option<&Kms>) -> String {
    let mut text = image.unwrap_or_default().to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !has_name(&text, "localhost") {
        text.push_str("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    }
    if !has_name(&text, hostname) {
        text.push_str(&format!("127.0.0.1 {hostname}\n"));
    }
    if let Some(kms) = kms {
        let names = kms_names::names(&kms.region).join(" ");
        text.push_str(&format!("169.254.170.3 {names}\n"));
    }
    text
}

fn has_name(text: &str, name: &str) -> bool {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .into_iter()
        .any(|line| line.split_whitespace().skip(1).any(|word| word == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_image_gets_localhost_and_a_name() {
        let text = hosts(None, "enclave", None);
        assert!(text.starts_with("127.0.0.1 localhost\n"));
        assert!(text.ends_with("127.0.0.1 enclave\n"));
    }

    #[test]
    fn the_images_own_lines_stay() {
        let image = "127.0.0.1 localhost # loop\n10.0.0.1 db";
        let text = hosts(Some(image), "web", None);
        assert_eq!(
            text,
            "127.0.0.1 localhost # loop\n10.0.0.1 db\n127.0.0.1 web\n"
        );
        assert!(
            hosts(Some("# 127.0.0.1 localhost\n"), "a", None).contains("\n127.0.0.1 localhost\n")
        );
    }

    #[test]
    fn the_kms_has_its_names() {
        let kms = Kms {
            region: "eu-west-3".into(),
            server_name: "kms.example".into(),
            ca_pem: String::new(),
            key_arns: Vec::new(),
            attested_signing: false,
        };
        let text = hosts(None, "enclave", Some(&kms));
        assert!(
            text.contains("169.254.170.3 kms.eu-west-3.amazonaws.com "),
            "{text}"
        );
    }

    #[test]
    fn a_host_name_that_is_none_is_replaced() {
        assert_eq!(hostname(Some("web-1.local\n")), "web-1.local");
        assert_eq!(hostname(Some("  \n")), "enclave");
        assert_eq!(hostname(Some("two words")), "enclave");
        assert_eq!(hostname(Some(&"x".repeat(65))), "enclave");
        assert_eq!(hostname(None), "enclave");
    }
}
