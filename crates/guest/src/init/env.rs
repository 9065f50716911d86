//! The application's environment: the image's own, and what it leaves unsaid.

use enclos_api::config::Kms;

/// Where a command is looked for when the image sets no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Certificates that SDKs and libraries shall trust: the image's, and the agent's for the KMS names.
pub const CA_BUNDLE: &str = "/run/enclos/ca-bundle.pem";

/// Names by which SDKs and libraries are told of a certificate bundle.
const CA_VARIABLES: [&str; 4] = [
    "AWS_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
];

/// Adds defaults to the image's `NAME=value` list. Nothing that the image sets is changed.
pub(super) fn complete(
    image: &[String],
    home: &str,
    hostname: &str,
    kms: Option<&Kms>,
) -> Vec<(String, String)> {
    let pairs = image.iter().filter_map(|line| line.split_once('='));
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in pairs.filter(|(name, _)| !name.is_empty()) {
        env.retain(|(known, _)| known != name);
        env.push((name.to_owned(), value.to_owned()));
    }
    add(&mut env, "PATH", DEFAULT_PATH);
    add(&mut env, "HOME", home);
    add(&mut env, "HOSTNAME", hostname);
    if let Some(kms) = kms {
        add_aws(&mut env, kms);
    }
    env
}

fn add(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    if !env.iter().any(|(known, _)| known == name) {
        env.push((name.to_owned(), value.to_owned()));
    }
}

/// One region variable speaks for both: SDKs differ in which one they prefer.
fn add_aws(env: &mut Vec<(String, String)>, kms: &Kms) {
    let names = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    let set = env.iter().find(|(name, _)| names.contains(&name.as_str()));
    let region = set.map_or_else(|| kms.region.clone(), |(_, value)| value.clone());
    for name in names {
        add(env, name, &region);
    }
    add(env, "AWS_ENDPOINT_URL_KMS", "http://169.254.170.3");
    for name in CA_VARIABLES {
        add(env, name, CA_BUNDLE);
    }
}

/// The value of `name`.
pub(super) fn get<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kms() -> Kms {
        Kms {
            region: "eu-west-3".into(),
            server_name: "kms.example".into(),
            ca_pem: String::new(),
            key_arns: Vec::new(),
            attested_signing: false,
        }
    }

    fn env(image: &[&str], kms: Option<&Kms>) -> Vec<(String, String)> {
        let image: Vec<String> = image.iter().map(|line| (*line).to_owned()).collect();
        complete(&image, "/root", "enclave", kms)
    }

    #[test]
    fn what_the_image_says_stays() {
        let env = env(
            &[
                "PATH=/x",
                "AWS_CA_BUNDLE=/mine",
                "A=1\n2",
                "A=3",
                "junk",
                "=x",
            ],
            Some(&kms()),
        );
        assert_eq!(get(&env, "PATH"), Some("/x"));
        assert_eq!(get(&env, "AWS_CA_BUNDLE"), Some("/mine"));
        assert_eq!(get(&env, "SSL_CERT_FILE"), Some(CA_BUNDLE));
        assert_eq!(get(&env, "A"), Some("3"));
        assert_eq!(get(&env, ""), None);
    }

    #[test]
    fn one_region_speaks_for_both_names() {
        let own = env(&["AWS_DEFAULT_REGION=us-east-1"], Some(&kms()));
        assert_eq!(get(&own, "AWS_REGION"), Some("us-east-1"));
        let measured = env(&[], Some(&kms()));
        assert_eq!(get(&measured, "AWS_REGION"), Some("eu-west-3"));
        assert_eq!(
            get(&measured, "AWS_ENDPOINT_URL_KMS"),
            Some("http://169.254.170.3")
        );
    }

    #[test]
    fn without_a_kms_nothing_of_aws_is_set() {
        let env = env(&[], None);
        assert!(
            env.iter()
                .all(|(name, _)| !name.contains("AWS") && !name.contains("CA"))
        );
        assert_eq!(get(&env, "HOME"), Some("/root"));
    }
}
