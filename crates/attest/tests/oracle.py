"""A second opinion on the shared vectors, in Python, on `cryptography` and `cbor2`.

Usage: oracle.py MANIFEST QOS_DOCUMENT. Prints {name: accepted} as JSON. Exit status 3: the packages of oracle.txt are missing.

Written from AWS's description of the verification process and RFC 5280 and 9052, with what these two libraries offer.
It does not look into crates/attest. What it leaves out is listed in SPEC.md, section 5.2.
"""

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

try:
    import cbor2
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils
except ImportError as missing:
    print(missing, file=sys.stderr)
    sys.exit(3)

SKEW_MS = 5_000
ES384 = b"\xa1\x01\x38\x22"
UNDERSTOOD = {x509.OID_BASIC_CONSTRAINTS, x509.OID_KEY_USAGE}


class Refused(Exception):
    """The document breaks a rule."""


def require(condition, rule):
    if not condition:
        raise Refused(rule)


def envelope(data):
    require(len(data) <= 16_640, "too long")
    decoded = cbor2.loads(data)
    if isinstance(decoded, cbor2.CBORTag):
        require(decoded.tag == 18, "tag")
        decoded = decoded.value
    require(isinstance(decoded, (list, tuple)) and len(decoded) == 4, "four elements")
    protected, unprotected, payload, signature = decoded
    require(protected == ES384, "algorithm")
    require(unprotected == {}, "unprotected header")
    require(isinstance(payload, bytes) and isinstance(signature, bytes), "payload and signature")
    require(len(signature) == 96, "signature length")
    return payload, signature


def sized(value, low, high):
    return isinstance(value, bytes) and low <= len(value) <= high


def claims(payload):
    doc = cbor2.loads(payload)
    require(isinstance(doc, dict), "payload")
    require("nitrotpm_pcrs" not in doc, "NitroTPM")
    require(isinstance(doc.get("module_id"), str) and doc["module_id"], "module_id")
    require(doc.get("digest") == "SHA384", "digest")
    require(isinstance(doc.get("timestamp"), int) and doc["timestamp"] > 0, "timestamp")
    pcrs = doc.get("pcrs")
    require(isinstance(pcrs, dict) and 1 <= len(pcrs) <= 32, "pcrs")
    for index, value in pcrs.items():
        require(isinstance(index, int) and 0 <= index < 32, "register")
        require(sized(value, 48, 48), "register's value")
    require(sized(doc.get("certificate"), 1, 1024), "certificate")
    bundle = doc.get("cabundle")
    require(isinstance(bundle, list) and 1 <= len(bundle) <= 8, "cabundle")
    require(all(sized(member, 1, 1024) for member in bundle), "member of cabundle")
    for key, low in (("public_key", 1), ("user_data", 0), ("nonce", 0)):
        require(doc.get(key) is None or sized(doc[key], low, 1024), key)
    return doc


def extension(certificate, kind):
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def check_certificate(certificate, below, now):
    """One certificate, with `below` certificates below it."""
    require(certificate.version is x509.Version.v3, "version")
    require(certificate.signature_algorithm_oid == x509.SignatureAlgorithmOID.ECDSA_WITH_SHA384, "algorithm")
    key = certificate.public_key()
    require(isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1), "key")
    require(certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc, "validity")
    unknown = [e.oid for e in certificate.extensions if e.critical and e.oid not in UNDERSTOOD]
    require(not unknown, "critical extension")
    constraints = extension(certificate, x509.BasicConstraints)
    usage = extension(certificate, x509.KeyUsage)
    require(usage is not None, "keyUsage")
    if below == 0:
        require(constraints is None or not constraints.ca and constraints.path_length is None, "leaf is CA")
        require(usage.digital_signature and not usage.key_cert_sign, "leaf's keyUsage")
        return
    require(constraints is not None and constraints.ca, "not a CA")
    require(constraints.path_length is None or constraints.path_length >= below - 1, "pathLen")
    require(usage.key_cert_sign, "keyCertSign")


def check_chain(doc, root, at):
    require(doc["cabundle"][0] == root, "root")
    chain = [x509.load_der_x509_certificate(der) for der in [*doc["cabundle"], doc["certificate"]]]
    now = datetime.fromtimestamp(at // 1000, timezone.utc)
    for position, certificate in enumerate(chain):
        if position:
            issuer = chain[position - 1]
            certificate.verify_directly_issued_by(issuer)
            theirs = extension(issuer, x509.SubjectKeyIdentifier)
            ours = extension(certificate, x509.AuthorityKeyIdentifier)
            if theirs and ours and ours.key_identifier is not None:
                require(theirs.digest == ours.key_identifier, "key identifier")
        check_certificate(certificate, len(chain) - 1 - position, now)
    return chain[-1].public_key()


def judge(data, entry, root):
    payload, signature = envelope(data)
    doc = claims(payload)
    timestamp, now = doc["timestamp"], entry["at"]
    require(timestamp <= now + SKEW_MS, "future")
    require(entry["archival"] or now - timestamp <= entry["maxAgeSeconds"] * 1000, "age")
    key = check_chain(doc, root, timestamp if entry["archival"] else now)
    der = utils.encode_dss_signature(int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big"))
    signed = cbor2.dumps(["Signature1", ES384, b"", payload])
    key.verify(der, signed, ec.ECDSA(hashes.SHA384()))
    for index in (0, 1, 2):
        require(index in doc["pcrs"], "image register")
        require(entry["allowDebug"] or any(doc["pcrs"][index]), "debug")


def accepts(data, entry, root):
    try:
        judge(data, entry, root)
    except (Refused, InvalidSignature, UnsupportedAlgorithm, cbor2.CBORError, ValueError, TypeError, OverflowError, x509.DuplicateExtension, x509.InvalidVersion) as refusal:
        print(f"{entry['name']}: {type(refusal).__name__} {refusal}", file=sys.stderr)
        return False
    return True


def main():
    manifest_path = Path(sys.argv[1])
    manifest = json.loads(manifest_path.read_text())
    roots = {name: (manifest_path.parent / file).read_bytes() for name, file in manifest["roots"].items()}
    verdicts = {}
    for entry in manifest["documents"]:
        path = manifest_path.parent / entry["file"] if "file" in entry else Path(sys.argv[2])
        verdicts[entry["name"]] = accepts(path.read_bytes(), entry, roots[entry["root"]])
    json.dump(verdicts, sys.stdout)


main()
