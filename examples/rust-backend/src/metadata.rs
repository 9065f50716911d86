//! The instance's metadata address, as on EC2, with the path that enclaves add.

use anyhow::{Context, Result};
use aws_credential_types::Credentials;
use base64::prelude::{BASE64_STANDARD, Engine};
use http::Request;
use serde::Deserialize;

use crate::http_client::send;

const BASE: &str = "http://169.254.169.254/latest";
const TOKEN: &str = "x-aws-ec2-metadata-token";

/// A fresh attestation document over `public_key`. `nonce` is base64, as the caller gave it.
pub(crate) async fn attestation_document(public_key: &[u8], nonce: &str) -> Result<Vec<u8>> {
    let path = format!("{BASE}/meta-data/enclave-attestation-document");
    let mut url = url::Url::parse(&path)?;
    url.query_pairs_mut()
        .append_pair("public_key", &BASE64_STANDARD.encode(public_key))
        .append_pair("nonce", nonce);
    let request = Request::get(url.as_str()).header(TOKEN, session_token().await?);
    let text = send(request.body(Vec::new())?).await?;
    BASE64_STANDARD
        .decode(text.trim_ascii())
        .context("the metadata service did not answer in base64")
}

/// IMDSv2's token, which a document for a key needs too.
async fn session_token() -> Result<Vec<u8>> {
    let request = Request::put(format!("{BASE}/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "60");
    send(request.body(Vec::new())?).await
}

/// The role's credentials of the moment.
pub(crate) async fn credentials() -> Result<Credentials> {
    let token = session_token().await?;
    let get = async |path: &str| {
        let path = format!("{BASE}/meta-data/iam/security-credentials/{path}");
        let request = Request::get(path).header(TOKEN, token.as_slice());
        send(request.body(Vec::new())?).await
    };
    let role = String::from_utf8(get("").await?).context("the role's name is not UTF-8")?;
    let role = role.lines().next().context("this instance has no role")?;
    let found: RoleCredentials = serde_json::from_slice(&get(role).await?)?;
    let Keys(id, secret, token) = found.into();
    Ok(Credentials::new(id, secret, token, None, "metadata"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RoleCredentials {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
}

struct Keys(String, String, Option<String>);

impl From<RoleCredentials> for Keys {
    /// An empty token means none: sent along, it would be part of the signature.
    fn from(found: RoleCredentials) -> Self {
        let token = found.token.filter(|token| !token.is_empty());
        Self(found.access_key_id, found.secret_access_key, token)
    }
}
