"""Signed requests for wrk, made before the load: `kms_requests.py WHAT URL FILE …` writes a script for wrk.

Every request is a whole one, with a signature of its own; wrk sends them in turn and begins again at the end.
"""

import base64
import json
import pathlib
import random
import sys
import time

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import EndpointConnectionError

REGION = "us-east-1"
# How many requests to different keys are made in advance.
DIFFERENT = 20_000

SCRIPT = """
local requests, turn = {}, 0
for line in io.lines(%s) do
   requests[#requests + 1] = line:gsub("\\\\r\\\\n", "\\r\\n")
end
request = function()
   turn = turn %% #requests + 1
   return requests[turn]
end
"""


def connect(url):
    client = boto3.client("kms", endpoint_url=url, region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test")
    for _ in range(100):
        try:
            client.list_keys()
            return client
        except EndpointConnectionError:
            time.sleep(0.2)
    sys.exit(f"no server at {url}")


def signed(url, operation, body):
    """One request as it goes over the wire, on one line."""
    body = json.dumps(body)
    headers = {"X-Amz-Target": f"TrentService.{operation}", "Content-Type": "application/x-amz-json-1.1"}
    request = AWSRequest("POST", url, data=body, headers=headers)
    SigV4Auth(Credentials("test", "test"), "kms", REGION).add_auth(request)
    host = url.removeprefix("http://").rstrip("/")
    fields = {"Host": host, "Content-Length": str(len(body)), **dict(request.headers.items())}
    head = [f"{name}: {value}" for name, value in fields.items()]
    return "\\r\\n".join(["POST / HTTP/1.1", *head, "", body])


def write(file, requests):
    data = pathlib.Path(file).with_suffix(".requests")
    data.write_text("\n".join(requests) + "\n")
    pathlib.Path(file).write_text(SCRIPT % json.dumps(str(data)))


def text(data):
    return base64.b64encode(data).decode()


def basic(url, directory):
    """The three everyday operations on one key, each as one request."""
    client = connect(url)
    key = client.create_key()["KeyMetadata"]["KeyId"]
    blob = client.encrypt(KeyId=key, Plaintext=bytes(32))["CiphertextBlob"]
    requests = {
        "Encrypt": {"KeyId": key, "Plaintext": text(bytes(32))},
        "Decrypt": {"CiphertextBlob": text(blob)},
        "GenerateDataKey": {"KeyId": key, "KeySpec": "AES_256"},
    }
    for operation, body in requests.items():
        write(f"{directory}/{operation}.lua", [signed(url, operation, body)])


def create(url, file):
    """New keys: a hundred now, more from wrk."""
    client = connect(url)
    for _ in range(100 - len(known_keys(url, 100))):
        client.create_key()
    write(file, [signed(url, "CreateKey", {"Description": "load"})])


def known_keys(url, most):
    pages = connect(url).get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 1000, "MaxItems": int(most)})
    return [entry["KeyId"] for page in pages for entry in page["Keys"]]


def count(url, most):
    """How many keys there are, at most so many."""
    print(len(known_keys(url, most)))


def keys(url, file, most):
    """Encrypt with a random one of so many keys each."""
    known = known_keys(url, most)
    dice = random.Random(1)
    chosen = [dice.choice(known) for _ in range(DIFFERENT)]
    write(file, [signed(url, "Encrypt", {"KeyId": key, "Plaintext": text(bytes(32))}) for key in chosen])


def attested(url, file, documents, pcr0):
    """Decrypt with a document of its own each, under a policy that asks for its PCR0."""
    client = connect(url)
    key = client.create_key()["KeyMetadata"]["KeyId"]
    blob = client.encrypt(KeyId=key, Plaintext=bytes(32))["CiphertextBlob"]
    everyone = {"Effect": "Allow", "Principal": {"AWS": "000000000000"}, "Resource": "*"}
    measured = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": pcr0}}
    statements = [{**everyone, "NotAction": "kms:Decrypt"}, {**everyone, "Action": "kms:Decrypt", "Condition": measured}]
    client.put_key_policy(KeyId=key, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    requests = []
    for line in pathlib.Path(documents).read_text().split():
        recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": text(bytes.fromhex(line))}
        requests.append(signed(url, "Decrypt", {"CiphertextBlob": text(blob), "Recipient": recipient}))
    write(file, requests)


if __name__ == "__main__":
    {"basic": basic, "create": create, "count": count, "keys": keys, "attested": attested}[sys.argv[1]](*sys.argv[2:])
