//! What the tools change, and what the server is told by files, is in the audit trail too.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Failure;
use crate::arn::PrincipalArn;
use crate::audit::unix_ms;
use crate::crypto::seal::RootKey;
use crate::crypto::{RandomError, uuid};
use crate::store::{self, AuditRow, Connection};

/// Records a change by whoever runs the tool, in the same transaction. `connection` is in a transaction; the root key was opened before
/// it began, because somebody may have had to be asked for a passphrase.
pub(super) async fn record(
    connection: &mut Connection,
    root: &RootKey,
    operation: &str,
    account: &str,
    parameters: Value,
) -> Result<(), Failure> {
    let row = row("iam.amazonaws.com", operation, account, parameters)?;
    store::append_audit(connection, &row, root).await?;
    Ok(())
}

/// An event of whoever runs this process.
pub(super) fn row(
    source: &str,
    operation: &str,
    account: &str,
    parameters: Value,
) -> Result<AuditRow, RandomError> {
    let now = OffsetDateTime::now_utc();
    let uid = rustix::process::getuid().as_raw();
    let event = json!({
        "eventVersion": "1.11",
        "userIdentity": { "type": "Local", "principalId": uid.to_string(), "accountId": account },
        "eventTime": now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default(),
        "eventSource": source,
        "eventName": operation,
        "awsRegion": "",
        "sourceIPAddress": "local",
        "userAgent": concat!("enclos-kms/", env!("CARGO_PKG_VERSION")),
        "requestParameters": parameters,
        "responseElements": null,
        "requestID": uuid()?,
        "eventID": uuid()?,
        "readOnly": false,
        "resources": [],
        "eventType": "AwsApiCall",
        "managementEvent": true,
        "recipientAccountId": account,
        "eventCategory": "Management",
    });
    Ok(AuditRow {
        time_ms: unix_ms(now),
        operation: operation.to_owned(),
        error_code: None,
        event: event.to_string(),
        used: None,
    })
}

/// The account that an ARN is of.
pub(super) fn account(arn: &str) -> String {
    PrincipalArn::parse(arn).map_or_else(|_| String::new(), |arn| arn.account().to_string())
}
