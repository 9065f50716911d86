//! Signature Version 4 with the role's credentials.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SigningParams, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use enclos_api::guest::RoleFacts;
use http_body_util::Full;
use hyper::Request;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Signs a request for the service `kms` in `region` and adds the signature's headers.
///
/// # Errors
/// When a header cannot be signed.
pub fn apply(
    request: &mut Request<Full<Bytes>>,
    body: &[u8],
    role: &RoleFacts,
    region: &str,
    server_name: &str,
) -> Result<(), BoxError> {
    let credentials = Credentials::new(
        &role.access_key_id,
        &role.secret_access_key,
        role.session_token.clone().filter(|token| !token.is_empty()),
        None,
        "parent",
    );
    let identity = credentials.into();
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let parameters: SigningParams<'_> = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("kms")
        .time(SystemTime::now())
        .settings(settings)
        .build()?
        .into();
    let headers = request
        .headers()
        .iter()
        .map(|(name, value)| Ok((name.as_str(), value.to_str()?)))
        .collect::<Result<Vec<_>, BoxError>>()?;
    let uri = format!("https://{server_name}/");
    let signable =
        SignableRequest::new("POST", uri, headers.into_iter(), SignableBody::Bytes(body))?;
    let (instructions, _) = sign(signable, &parameters)?.into_parts();
    instructions.apply_to_request_http1x(request);
    Ok(())
}
