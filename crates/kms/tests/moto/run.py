#!/usr/bin/env python3
"""Runs moto's tests of KMS, which nobody here wrote, against enclos-kms.

    python3 crates/kms/tests/moto/run.py [--kms target/debug/enclos-kms] [pytest arguments]

The black-box part of `tests/test_kms` in moto's source package speaks to any server. Every test gets a server of
its own on an empty data directory. `expected.toml` lists the tests that must fail, each with the reason: it
contradicts AWS, or looks into moto. The run fails if any other test fails, if a listed one passes, and if the
list names a test that is not there.

Packages come from PyPI once and stay in ~/.cache/enclos/moto (ENCLOS_CACHE moves it).
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
MOTO = "5.2.5"
# `moto[kms]` spelled out, so that two runs on two days use the same code.
PACKAGES = [f"moto=={MOTO}", "boto3==1.44.8", "cryptography==46.0.3", "pytest==9.0.1", "freezegun==1.5.5"]
# What is in tests/test_kms beside these looks into moto itself: its models, its Flask application, CloudFormation.
FILES = [
    "test_kms.py",
    "test_kms_encrypt.py",
    "test_kms_grants.py",
    "test_kms_key_rotation.py",
    "test_kms_mac.py",
    "test_kms_policy_enforcement.py",
]


def installed() -> pathlib.Path:
    """The directory with the virtual environment and moto's source, made once."""
    cache = pathlib.Path(os.environ.get("ENCLOS_CACHE", pathlib.Path.home() / ".cache" / "enclos")) / "moto"
    stamp = cache / "installed"
    wanted = "\n".join(PACKAGES)
    if stamp.exists() and stamp.read_text() == wanted:
        return cache
    print(f"installing moto {MOTO} and pytest into {cache}", flush=True)
    venv.create(cache / "venv", with_pip=True, clear=True)
    pip = [cache / "venv/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", *PACKAGES], check=True)
    download = ["download", "--no-deps", "--no-binary=:all:", f"--dest={cache}"]
    subprocess.run([*pip, *download, f"moto=={MOTO}"], check=True)
    shutil.unpack_archive(cache / f"moto-{MOTO}.tar.gz", cache)
    stamp.write_text(wanted)
    return cache


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = HERE.parents[3]
    parser.add_argument("--kms", type=pathlib.Path, default=root / "target/debug/enclos-kms", help="the program to test")
    arguments, more = parser.parse_known_args()
    if not arguments.kms.is_file():
        parser.error(f"{arguments.kms} is not there; run `cargo build -p enclos-kms` or say --kms")
    cache = installed()
    source = cache / f"moto-{MOTO}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
    environment |= {
        "ENCLOS_KMS": str(arguments.kms.resolve()),
        "PYTHONPATH": str(HERE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TEST_SERVER_MODE": "true",
        "MOTO_CALL_RESET_API": "false",
    }
    tests = [f"tests/test_kms/{name}" for name in FILES]
    options = ["-p", "plugin", "-p", "no:cacheprovider", "--strict-markers", "-q", "-rfEX", "--tb=short"]
    # These call moto's evaluation of policies in this process.
    options += ["--deselect", "tests/test_kms/test_kms_policy_enforcement.py::TestKMSPolicyValidator"]
    command = [cache / "venv/bin/python", "-m", "pytest", *options, *(more or []), *tests]
    return subprocess.run(command, cwd=source, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
