"""The Flask example with one route more: boto3 signs, with a key that the KMS lets this enclave alone sign with."""

import base64

from app import app, kms
from flask import jsonify, request


@app.post("/sign")
def sign():
    """Signs `text` under the key `key` and looks at the signature, as any application would."""
    asked = request.get_json()
    call = {"KeyId": asked["key"], "SigningAlgorithm": "ECDSA_SHA_256", "Message": asked["text"].encode()}
    signature = kms.sign(**call)["Signature"]
    return jsonify(signature=base64.b64encode(signature).decode())


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=5000)
