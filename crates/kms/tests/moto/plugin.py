"""The pytest plugin of run.py: a fresh server for each test, and the list of tests that must fail."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import tomllib

import boto3
import pytest
from moto.core.config import default_user_config
from moto.core.models import ServerModeMockAWS

KMS = os.environ["ENCLOS_KMS"]
ROOT = "arn:aws:iam::123456789012:root"
EXPECTED = pathlib.Path(__file__).with_name("expected.toml")

# Texts that moto's tests give as key policies where the policy does not matter. AWS and enclos-kms refuse them
# with MalformedPolicyDocumentException; the tests mean "some policy", so they get one.
NOT_POLICIES = {"my policy", "My Policy"}
SOME_POLICY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"AWS": ROOT}, "Action": "kms:*", "Resource": "*"}],
    }
)

# moto's decorators would put credentials of their own into the environment.
default_user_config["core"]["mock_credentials"] = False


def start(data):
    """A server on a data directory, and its address."""
    log = open(pathlib.Path(data) / "log", "ab")
    command = [KMS, "serve", "--dev", "--listen", "127.0.0.1:0", "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        raise RuntimeError(f"enclos-kms did not start: {line!r}; see {data}/log")
    return process, line.removeprefix("listening on ").strip()


def stop(process):
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Template:
    """A data directory with one access key, to be copied for every test."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="enclos-moto-")
        self.data = pathlib.Path(self.directory.name) / "template"
        self.data.mkdir(mode=0o700)
        process, _ = start(self.data)
        stop(process)
        command = [KMS, "principal", "add", "--arn", ROOT, "--data", str(self.data)]
        self.credentials = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.fixture(scope="session")
def template():
    made = Template()
    yield made
    made.directory.cleanup()


class Endpoint:
    """Where moto's decorators send clients: not where the server was when the test module was read."""

    url = None

    def __get__(self, instance, owner=None):
        return self.url

    def __set__(self, instance, value):
        pass


ENDPOINT = Endpoint()
ServerModeMockAWS._test_server_mode_endpoint = ENDPOINT


def some_policy(params, **_):
    if params.get("Policy") in NOT_POLICIES:
        params["Policy"] = SOME_POLICY
    # moto has no lockout safety check: its tests put policies that deny everything.
    params.setdefault("BypassPolicyLockoutSafetyCheck", True)


def operation_names(params, **_):
    # moto's tests name operations as `DECRYPT`, AWS and enclos-kms as `Decrypt`.
    operations = params.get("Operations", [])
    params["Operations"] = ["".join(word.capitalize() for word in name.split("_")) for name in operations]


@pytest.fixture(autouse=True)
def server(template, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="enclos-moto-") as directory:
        data = pathlib.Path(directory) / "data"
        shutil.copytree(template.data, data)
        process, Endpoint.url = start(data)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", template.credentials["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", template.credentials["SecretAccessKey"])
        boto3.setup_default_session()
        for operation in ["CreateKey", "PutKeyPolicy"]:
            boto3.DEFAULT_SESSION.events.register(f"provide-client-params.kms.{operation}", some_policy)
        boto3.DEFAULT_SESSION.events.register("provide-client-params.kms.CreateGrant", operation_names)
        try:
            yield
        finally:
            stop(process)


def pytest_collection_modifyitems(config, items):
    expected = {}
    for group in tomllib.loads(EXPECTED.read_text())["group"]:
        for name in group["tests"]:
            expected[name] = group["reason"]
    unused = set(expected)
    for item in items:
        # A whole function, or one of its parameter sets.
        short = f"{item.path.name}::{item.nodeid.split('::', 1)[1]}"
        for name in (short, short.split("[", 1)[0]):
            if name in expected:
                unused.discard(name)
                item.add_marker(pytest.mark.xfail(reason=expected[name], strict=True))
                break
    selective = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    if unused and not selective:
        raise pytest.UsageError(f"{EXPECTED.name} names tests that are not there: {', '.join(sorted(unused))}")
