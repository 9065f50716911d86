"""A backend that decrypts what it is sent and answers with the result: plain Flask, plain boto3."""

import base64
import urllib.parse
import urllib.request

import boto3
from botocore.exceptions import ClientError
from flask import Flask, jsonify, request

METADATA = "http://169.254.169.254/latest/meta-data/enclave-attestation-document"

app = Flask(__name__)
kms = boto3.client("kms")


@app.post("/process")
def process():
    """Decrypts `encrypted_data` (base64 of a KMS ciphertext) and works on the plaintext."""
    ciphertext = base64.b64decode(request.get_json()["encrypted_data"])
    try:
        plaintext = kms.decrypt(CiphertextBlob=ciphertext)["Plaintext"]
    except ClientError as error:
        return jsonify(error=error.response["Error"]), 403
    return jsonify(result="Processed: " + work(plaintext.decode()))


def work(text: str) -> str:
    """Stands for whatever must be done with data that nobody else may see."""
    return f"{text.upper()} ({len(text.split())} words)"


@app.get("/attest")
def attest():
    """Answers with a fresh attestation document; `nonce` (base64) makes it the caller's own."""
    query = urllib.parse.urlencode({"nonce": request.args.get("nonce", "")})
    with urllib.request.urlopen(f"{METADATA}?{query}", timeout=10) as reply:
        return jsonify(attestation_doc=reply.read().decode().strip())


@app.get("/health")
def health():
    """Answers as soon as the application serves."""
    return jsonify(status="ok")


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=5000)
