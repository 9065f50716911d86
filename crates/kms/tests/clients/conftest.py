"""A server, another one for what KMS does not do, and AWS's programs beside them."""

import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import boto3
import pytest

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = pathlib.Path(sys.executable).parent
REGION = "eu-west-1"
# Of a peer whose call KMS refused.
REFUSED = 7


@pytest.fixture(scope="session")
def kms_url():
    with tempfile.TemporaryDirectory(prefix="enclos-clients-") as data:
        with open(pathlib.Path(data) / "log", "ab") as log:
            command = [os.environ["ENCLOS_KMS"], "serve", "--dev", "--listen", "127.0.0.1:0", "--data", data]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), (pathlib.Path(data) / "log").read_text()
            yield line.removeprefix("listening on ").strip()
        finally:
            process.terminate()
            status = process.wait(20)
        assert status == 0


@pytest.fixture(scope="session", autouse=True)
def environment(kms_url):
    """What a user sets to send a stock program to enclos-kms, and nothing else."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ENDPOINT_URL_KMS", kms_url)
    patch.setenv("AWS_ENDPOINT_URL_STS", kms_url)
    patch.setenv("AWS_REGION", REGION)
    patch.setenv("AWS_DEFAULT_REGION", REGION)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # The JavaScript SDK announces which versions of Node.js it will drop.
    patch.setenv("NODE_NO_WARNINGS", "1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def kms(environment):
    return boto3.client("kms")


@pytest.fixture(scope="session")
def key(kms):
    return kms.create_key(Description="clients")["KeyMetadata"]["Arn"]


@pytest.fixture(scope="session")
def dynamodb(environment, tmp_path_factory):
    """moto's DynamoDB, for programs that keep their secrets there."""
    log = open(tmp_path_factory.mktemp("dynamodb") / "log", "wb")
    server = [sys.executable, str(HERE / "dynamodb.py")]
    process = subprocess.Popen(server, stdout=subprocess.PIPE, stderr=log, text=True)
    patch = pytest.MonkeyPatch()
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), pathlib.Path(log.name).read_text()
        patch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        yield url
    finally:
        patch.undo()
        process.terminate()
        process.wait(20)


class Refused(Exception):
    """KMS said no to a program; the text is the exception's name."""


def run(command, stdin=b"", **more):
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False, **more)
    if done.returncode == REFUSED:
        raise Refused(done.stderr.decode().strip())
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr.decode()}"
    return done.stdout


class Peer:
    """A program that speaks peer.mjs's command line."""

    def __init__(self, *command):
        self.command = [str(word) for word in command]

    def __call__(self, *arguments, stdin=b""):
        return run([*self.command, *arguments], stdin)

    def encrypt(self, key, text, context):
        return self("encrypt", key, *pairs(context), stdin=text)

    def decrypt(self, blob, context):
        return self("decrypt", *pairs(context), stdin=blob)


class Boto3:
    def encrypt(self, key, text, context):
        return boto3.client("kms").encrypt(KeyId=key, Plaintext=text, EncryptionContext=context)["CiphertextBlob"]

    def decrypt(self, blob, context):
        client = boto3.client("kms")
        try:
            return client.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"]
        except client.exceptions.InvalidCiphertextException as error:
            raise Refused(error.response["Error"]["Code"]) from error


class AwsCli:
    """`aws kms`, with files for bytes as its manual says."""

    def __init__(self, directory):
        self.file = directory / "bytes"

    def __call__(self, *arguments):
        command = [sys.executable, str(SCRIPTS / "aws"), *arguments, "--output", "json"]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, text=True)
        if refusal := re.search(r"An error occurred \((\w+)\) when calling", done.stderr):
            raise Refused(refusal[1])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def encrypt(self, key, text, context):
        self.file.write_bytes(text)
        arguments = ["--key-id", key, "--plaintext", f"fileb://{self.file}"]
        answer = self("kms", "encrypt", *arguments, "--encryption-context", json.dumps(context))
        return decoded(answer["CiphertextBlob"])

    def decrypt(self, blob, context):
        self.file.write_bytes(blob)
        arguments = ["--ciphertext-blob", f"fileb://{self.file}"]
        answer = self("kms", "decrypt", *arguments, "--encryption-context", json.dumps(context))
        return decoded(answer["Plaintext"])


def decoded(text):
    return base64.b64decode(text, validate=True)


def pairs(context):
    return [f"{name}={value}" for name, value in context.items()]


@pytest.fixture(scope="session")
def node():
    return Peer("node", HERE / "node" / "peer.mjs")


@pytest.fixture(scope="session")
def rust():
    return Peer(os.environ["ENCLOS_CLIENT_RUST"])


@pytest.fixture(scope="session")
def aws(tmp_path_factory):
    return AwsCli(tmp_path_factory.mktemp("aws"))


@pytest.fixture(scope="session")
def programs(node, rust, aws):
    return {"boto3": Boto3(), "node": node, "rust": rust, "awscli": aws}
