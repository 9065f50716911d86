"""Verifies attestation documents of AWS Nitro Enclaves and of Enclos.

`enclos.tls`, `enclos.requests` and `enclos.httpx` speak attested TLS.
"""

from ._core import Refused, VerifiedDocument, Verifier, lint_policy

__all__ = ["Refused", "VerifiedDocument", "Verifier", "lint_policy"]
