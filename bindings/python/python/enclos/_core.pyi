"""Verifies attestation documents of AWS Nitro Enclaves and of Enclos."""

from collections.abc import Mapping

class Refused(Exception):
    """The document is not accepted. `reasons` says what happened, then why."""

    reasons: list[str]

class VerifiedDocument:
    """A document whose signature, chain, freshness and content were checked. Only a `Verifier` makes one."""

    @property
    def module_id(self) -> str: ...
    @property
    def timestamp_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
    @property
    def pcrs(self) -> dict[int, str]:
        """Locked registers, 96 lower-case hexadecimal digits each."""
    @property
    def public_key(self) -> bytes | None:
        """The key that the enclave bound to the document."""
    @property
    def user_data(self) -> bytes | None: ...
    @property
    def nonce(self) -> bytes | None: ...
    @property
    def root(self) -> str:
        """Name of the trusted root that the chain begins with; `aws` is AWS's."""
    @property
    def is_debug(self) -> bool: ...

class Verifier:
    """Decides about documents, and remembers the chains that it has proven: keep one. Safe to share between threads."""

    def __init__(
        self,
        roots: Mapping[str, bytes] | None = None,
        *,
        aws: bool = False,
        pcrs: Mapping[int, str] | None = None,
        policy: str | None = None,
        max_age_seconds: float | None = None,
        archival: bool = False,
        allow_debug: bool = False,
    ) -> None:
        """Trusts `roots` (name: DER or PEM) and, with `aws`, AWS's. `policy` is the JSON of a measurement policy.

        Raises ValueError when a value cannot be used or no root is trusted.
        """
    def verify(self, document: bytes, *, nonce: bytes | None = None, now_ms: int | None = None) -> VerifiedDocument:
        """Raises Refused with every reason. `nonce` is what the document was asked for with."""
    def verify_tls_certificate(
        self, certificate: bytes, *, document: bytes | None = None, nonce: bytes | None = None, now_ms: int | None = None
    ) -> VerifiedDocument:
        """Verifies a certificate (DER) of attested TLS: its document, and that this speaks for the certificate's key.

        With `nonce`, `document` is what the server answered to it, and decides in place of the certificate's. That the server holds the
        key is for TLS to find out; `enclos.tls` does both. Raises Refused with every reason.
        """
    def holds(self, document: VerifiedDocument, *, nonce: bytes | None = None, now_ms: int | None = None) -> bool:
        """Whether a document that was accepted, with this nonce, would be accepted now. No signature is checked."""
    @property
    def asks_for_nonce(self) -> bool:
        """Whether the policy asks for a nonce anywhere."""

def lint_policy(policy: str, *, now_ms: int | None = None) -> list[str]:
    """Warnings of the linter for a measurement policy. Raises ValueError when it is none."""
