"""The shared vectors through the Python module, and what is Python's own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import enclos

VECTORS = Path(__file__).resolve().parents[3] / "crates/attest/tests/vectors"
MANIFEST: dict[str, Any] = json.loads((VECTORS / "manifest.json").read_text())
# The document that may not be copied has no file.
DOCUMENTS: list[dict[str, Any]] = [entry for entry in MANIFEST["documents"] if "file" in entry]
NOW = 1_795_305_600_000


def verifier(entry: dict[str, Any], **more: Any) -> enclos.Verifier:
    aws = entry["root"] == "aws"
    roots = {} if aws else {entry["root"]: (VECTORS / MANIFEST["roots"][entry["root"]]).read_bytes()}
    return enclos.Verifier(
        roots,
        aws=aws,
        max_age_seconds=entry["maxAgeSeconds"],
        archival=entry["archival"],
        allow_debug=entry["allowDebug"],
        **more,
    )


def document(name: str) -> tuple[dict[str, Any], bytes]:
    entry = next(entry for entry in DOCUMENTS if entry["name"] == name)
    return entry, (VECTORS / entry["file"]).read_bytes()


@pytest.mark.parametrize("entry", DOCUMENTS, ids=lambda entry: str(entry["name"]))
def test_vector(entry: dict[str, Any]) -> None:
    data = (VECTORS / entry["file"]).read_bytes()
    judge = verifier(entry)
    for _ in range(2):  # the second time, the chain is known
        if entry["accepted"]:
            assert judge.verify(data, now_ms=entry["at"]).root == entry["root"]
        else:
            with pytest.raises(enclos.Refused) as refused:
                judge.verify(data, now_ms=entry["at"])
            assert entry["reason"] in ": ".join(refused.value.reasons)


def test_there_are_vectors() -> None:
    assert len(DOCUMENTS) > 100


def test_what_a_document_says() -> None:
    entry, data = document("aws-pcr16")
    verified = verifier(entry).verify(data, now_ms=entry["at"])
    assert verified.module_id.startswith("i-") and verified.timestamp_ms == entry["at"]
    assert sorted(verified.pcrs) == list(range(17)) and len(verified.pcrs[0]) == 96
    assert verified.user_data == b"" and verified.nonce is None
    assert verified.public_key is not None and len(verified.public_key) == 32
    assert not verified.is_debug


def test_registers_nonce_and_policy() -> None:
    entry, data = document("good")
    pcr0 = "10" * 48
    judge = verifier(entry, pcrs={0: pcr0})
    judge.verify(data, now_ms=NOW)
    with pytest.raises(enclos.Refused, match="nonce is absent, expected 01"):
        judge.verify(data, now_ms=NOW, nonce=b"\x01")
    with pytest.raises(enclos.Refused, match="PCR0 is"):
        verifier(entry, pcrs={0: "11" * 48}).verify(data, now_ms=NOW)
    policy = {"version": 1, "measurements": {"app": {"pcrs": {"0": pcr0}}}, "require": {"measurements": ["app"]}}
    verifier(entry, policy=json.dumps(policy)).verify(data, now_ms=NOW)
    policy["require"] = {"not": policy["require"]}
    with pytest.raises(enclos.Refused, match="what the policy forbids"):
        verifier(entry, policy=json.dumps(policy)).verify(data, now_ms=NOW)
    assert any("any image" in warning for warning in enclos.lint_policy(json.dumps(policy)))


def test_a_document_holds_as_long_as_it_would_verify() -> None:
    entry, data = document("good")
    patient = verifier({**entry, "maxAgeSeconds": 7 * 24 * 3600})
    verified = patient.verify(data, now_ms=NOW)
    for hours in [0, 1, 2, 3, 4, 24]:
        for now in [verified.timestamp_ms + hours * 3_600_000 + shift for shift in (-5_001, -5_000, 0, 5_000)]:
            try:
                verifies = bool(patient.verify(data, now_ms=now))
            except enclos.Refused:
                verifies = False
            assert patient.holds(verified, now_ms=now) == verifies, now
    assert patient.holds(verified, now_ms=verified.timestamp_ms + 3_600_000)
    assert not patient.holds(verified, now_ms=verified.timestamp_ms + 24 * 3_600_000)
    assert not patient.holds(verified, now_ms=verified.timestamp_ms - 5_001)


def test_misuse_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no root is trusted"):
        enclos.Verifier()
    with pytest.raises(ValueError, match="there is no PCR32"):
        enclos.Verifier(aws=True, pcrs={32: "00" * 48})
    with pytest.raises(ValueError, match="not a measurement policy"):
        enclos.Verifier(aws=True, policy="{}")
    with pytest.raises(ValueError):
        enclos.Verifier(aws=True, max_age_seconds=-1)
    with pytest.raises(TypeError):
        enclos.VerifiedDocument()


def test_one_verifier_serves_many_threads() -> None:
    entry, data = document("good")
    judge = verifier(entry)
    with ThreadPoolExecutor(8) as pool:
        verified = pool.map(lambda _: judge.verify(data, now_ms=NOW).module_id, range(64))
    assert len(set(verified)) == 1
