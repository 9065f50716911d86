//! AWS's own NSM crate, unmodified, against `/dev/nsm`.

use anyhow::{Result, bail, ensure};
use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_nitro_enclaves_nsm_api::driver::{nsm_exit, nsm_init, nsm_process_request};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

/// Makes each of the eight requests and returns what came back.
pub(crate) fn observe() -> Result<Value> {
    let device = nsm_init();
    ensure!(device >= 0, "cannot open /dev/nsm");
    let observed = observe_on(device);
    nsm_exit(device);
    observed
}

fn observe_on(device: i32) -> Result<Value> {
    let ask = |request| nsm_process_request(device, request);
    let extended = ask(Request::ExtendPCR {
        index: 16,
        data: b"enclos".to_vec(),
    });
    let lock = ask(Request::LockPCR { index: 16 });
    let again = ask(Request::ExtendPCR {
        index: 16,
        data: b"enclos".to_vec(),
    });
    let range = ask(Request::LockPCRs { range: 17 });
    Ok(json!({
        "describe": format!("{:?}", ask(Request::DescribeNSM)),
        "pcr0": pcr(ask(Request::DescribePCR { index: 0 }))?,
        "pcr16": pcr(ask(Request::DescribePCR { index: 16 }))?,
        "extended": pcr_data(extended),
        "lock": format!("{lock:?}"),
        "extend_locked": format!("{again:?}"),
        "lock_range": format!("{range:?}"),
        "out_of_range": format!("{:?}", ask(Request::DescribePCR { index: 32 })),
        "random": [random(ask(Request::GetRandom))?, random(ask(Request::GetRandom))?],
        "document": document(ask(Request::Attestation {
            user_data: Some(ByteBuf::from(b"from AWS's crate")),
            nonce: Some(ByteBuf::from([7; 16])),
            public_key: None,
        }))?,
    }))
}

fn pcr(response: Response) -> Result<Value> {
    match response {
        Response::DescribePCR { lock, data } => {
            Ok(json!({ "lock": lock, "data": hex::encode(data) }))
        }
        other => bail!("DescribePCR: {other:?}"),
    }
}

fn pcr_data(response: Response) -> String {
    match response {
        Response::ExtendPCR { data } => hex::encode(data),
        other => format!("{other:?}"),
    }
}

fn random(response: Response) -> Result<String> {
    match response {
        Response::GetRandom { random } => Ok(hex::encode(random)),
        other => bail!("GetRandom: {other:?}"),
    }
}

fn document(response: Response) -> Result<String> {
    match response {
        Response::Attestation { document } => Ok(hex::encode(document)),
        other => bail!("Attestation: {other:?}"),
    }
}
