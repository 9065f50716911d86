"""Every operation against AWS's own model of it, with requests that fit and requests that do not.

No answer is a 5xx, every error is one that the model or AWS's list of common errors has for the operation, every
success has the shape that the model gives it, and a request with one flaw is refused for that flaw.

The same requests every time. ENCLOS_KMS_SEED chooses others, ENCLOS_KMS_MODEL_REQUESTS how many with several flaws each
operation gets; more than ten thousand requests in all unless it says otherwise.
"""

import collections
import http.client
import json
import os
import random
import re
import urllib.parse

import model as aws_model
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

MODEL = aws_model.load()
OPERATIONS = sorted(MODEL.operations)
# Requests for each operation: that fit, and with several flaws.
FITTING = 60
FLAWED = int(os.environ.get("ENCLOS_KMS_MODEL_REQUESTS", "60"))
SEED = os.environ.get("ENCLOS_KMS_SEED", "")

# https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html, and what AWS's JSON protocol answers to other types.
COMMON = {
    "AccessDeniedException",
    "ThrottlingException",
    "UnknownOperationException",
    "ValidationException",
    "SerializationException",
}

# Errors that AWS's documentation or service has and the model does not list for the operation.
BESIDE_THE_MODEL = {
    # It takes GrantTokens; every other operation that does has this error.
    "DescribeKey": {"InvalidGrantTokenException"},
    # Custom key stores are AWS's hardware: refused by name, and never taken for something else.
    **{name: {"UnsupportedOperationException"} for name in OPERATIONS if "CustomKeyStore" in name},
}

# Members of CreateKey that belong to custom key stores: whatever is in them.
REFUSED_BY_NAME = {"CustomKeyStoreId", "XksKeyId"}

# What requests must not leave behind for those that follow, and what undoes it.
UNDO = ["CancelKeyDeletion", "EnableKey"]


class Caller:
    """Signs and sends what botocore's own client would refuse to."""

    def __init__(self, url):
        self.url = url
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=30)
        self.signer = SigV4Auth(Credentials("test", "test"), "kms", "eu-west-1")

    def __call__(self, operation, body):
        headers = {"X-Amz-Target": f"TrentService.{operation}", "Content-Type": "application/x-amz-json-1.1"}
        request = AWSRequest("POST", self.url + "/", headers, json.dumps(body).encode())
        self.signer.add_auth(request)
        self.connection.request("POST", "/", request.data, dict(request.headers))
        answer = self.connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture(scope="module")
def caller(kms_url):
    return Caller(kms_url)


@pytest.fixture(scope="module")
def known(kms):
    """What exists: values that get requests past the first check."""
    made = {
        "symmetric": {},
        "sign": {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "MultiRegion": True},
        "mac": {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
        "agree": {"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"},
        "kem": {"KeySpec": "ML_KEM_512", "KeyUsage": "ENCAPSULATE_DECAPSULATE"},
        "import": {"Origin": "EXTERNAL"},
        "rsa": {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"},
    }
    keys = {name: kms.create_key(**wanted)["KeyMetadata"] for name, wanted in made.items()}
    ids = [key["KeyId"] for key in keys.values()] + [keys["symmetric"]["Arn"]]
    kms.create_alias(AliasName="alias/model", TargetKeyId=keys["symmetric"]["KeyId"])
    encrypted = kms.encrypt(KeyId=keys["symmetric"]["KeyId"], Plaintext=b"x")["CiphertextBlob"]
    text = aws_model.base64.b64encode
    grant = kms.create_grant(
        KeyId=keys["symmetric"]["KeyId"], GranteePrincipal="arn:aws:iam::000000000000:root", Operations=["Decrypt"]
    )
    public = text(kms.get_public_key(KeyId=keys["agree"]["KeyId"])["PublicKey"]).decode()
    return {
        "KeyId": ids,
        "TargetKeyId": ids,
        "SourceKeyId": ids,
        "DestinationKeyId": ids,
        "CiphertextBlob": [text(encrypted).decode()],
        "PublicKey": [public],
        "AliasName": ["alias/model", "alias/other"],
        "Policy": [kms.get_key_policy(KeyId=keys["symmetric"]["KeyId"])["Policy"]],
        "PolicyName": ["default"],
        "GranteePrincipal": ["arn:aws:iam::000000000000:root", "arn:aws:iam::000000000000:role/a"],
        "RetiringPrincipal": ["arn:aws:iam::000000000000:root"],
        "ReplicaRegion": ["us-east-1", "eu-west-1"],
        "PrimaryRegion": ["us-east-1"],
        "Plaintext": ["eA=="],
        "GrantId": [grant["GrantId"]],
        "GrantToken": [grant["GrantToken"]],
        # Making RSA keys takes seconds.
        "KeySpec": ["SYMMETRIC_DEFAULT", "AES_256", "ECC_NIST_P256", "HMAC_256", "ML_DSA_44"],
        "KeyPairSpec": ["ECC_NIST_P256", "ECC_NIST_EDWARDS25519"],
        "WrappingKeySpec": ["RSA_2048"],
        "CustomerMasterKeySpec": ["SYMMETRIC_DEFAULT", "HMAC_256"],
        # Keys that come and go would make every later request meet another state.
        "PendingWindowInDays": [30],
    }


@pytest.fixture(autouse=True)
def as_before(caller, known):
    """Every operation meets the same keys."""
    yield
    for key in known["KeyId"]:
        for operation in UNDO:
            caller(operation, {"KeyId": key})


def code(body):
    return json.loads(body)["__type"].rpartition("#")[2]


def check(operation, request, answer):
    status, body = answer
    shown = f"{operation} {json.dumps(request)[:500]}: {status} {body[:300]!r}"
    assert status < 500, shown
    if status == 200:
        assert MODEL.flaws(operation, body) == [], shown
        return None
    allowed = COMMON | MODEL.errors(operation) | BESIDE_THE_MODEL.get(operation, set())
    assert code(body) in allowed, shown
    return code(body)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_fit_the_model(caller, known, operation):
    dice = random.Random(SEED + operation)
    answers = collections.Counter()
    shape = MODEL.input(operation)
    for _ in range(FITTING):
        request = MODEL.structure(dice, shape, known)
        answers[check(operation, request, caller(operation, request))] += 1
    # AWS's word for what is not there; everything else must do something for somebody.
    if "CustomKeyStore" in operation:
        assert set(answers) <= {"UnsupportedOperationException"}
    else:
        assert len(answers) > 1 or None in answers, answers


def paths(shape, known, dice, depth=0):
    """Every member at every depth: how to put a value there into a request that fits, and the member's shape."""
    for name, member in MODEL.members(shape):
        yield (name,), member["shape"]
        about = MODEL.shapes[member["shape"]]
        if about["type"] == "structure" and depth < 2:
            for path, inner in paths(member["shape"], known, dice, depth + 1):
                yield (name, *path), inner
        if about["type"] == "list" and depth < 2:
            yield (name, 0), about["member"]["shape"]
            if MODEL.shapes[about["member"]["shape"]]["type"] == "structure":
                for path, inner in paths(about["member"]["shape"], known, dice, depth + 1):
                    yield (name, 0, *path), inner


def put(request, shape, path, value, known, dice):
    """`request` with `value` at a path; what lies on the way is made to fit."""
    name, *rest = path
    request = list(request) if isinstance(request, list) else dict(request)
    if not rest:
        request[name] = value
        return request
    about = MODEL.shapes[shape]
    inner = about["member"]["shape"] if isinstance(request, list) else about["members"][name]["shape"]
    there = request[name] if isinstance(request, list) or name in request else None
    if there is None:
        there = MODEL.some(dice, inner, name, {})
    request[name] = put(there, inner, rest, value, known, dice)
    return request


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_flaw_is_refused_for_what_it_is(caller, known, operation):
    dice = random.Random(SEED + operation)
    shape = MODEL.input(operation)
    smallest = MODEL.structure(dice, shape, known, optional=0)
    # The first of what exists, so that the flaw is the only one.
    smallest |= {name: known[name][0] for name in smallest if known.get(name)}
    for name in MODEL.required(shape):
        request = {other: value for other, value in smallest.items() if other != name}
        answer = caller(operation, request)
        check(operation, request, answer)
        refused_as(operation, request, answer, "constraint")
    for path, member in paths(shape, known, dice):
        if path[0] in REFUSED_BY_NAME:
            continue
        for value, wrong in MODEL.misfits(member):
            request = put(smallest, shape, path, value, known, dice)
            answer = caller(operation, request)
            check(operation, request, answer)
            refused_as(operation, request, answer, wrong)


def refused_as(operation, request, answer, wrong):
    if "CustomKeyStore" in operation:
        return
    status, body = answer
    expected = {"type": {"SerializationException"}, "constraint": {"ValidationException"}}[wrong]
    assert status == 400 and code(body) in expected, f"{operation} {json.dumps(request)[:300]}: {status} {body[:300]!r}, expected {expected}"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_several_flaws_are_the_callers_fault(caller, known, operation):
    dice = random.Random(SEED + operation)
    shape = MODEL.input(operation)
    flaws = [(path, value) for path, member in paths(shape, known, dice) for value, _ in MODEL.misfits(member)]
    for _ in range(FLAWED):
        request = MODEL.structure(dice, shape, known)
        for path, value in dice.sample(flaws, min(len(flaws), dice.randint(1, 5))):
            # What lies on the way may be a flaw itself by now.
            try:
                request = put(request, shape, path, value, known, dice)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                continue
        for name in [name for name in request if dice.random() < 0.1]:
            del request[name]
        check(operation, request, caller(operation, request))
