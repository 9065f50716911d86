"""Attested TLS for everything that takes an `ssl.SSLContext`.

The handshake of a connection made with `AttestedContext` is over only when the server's certificate carries an attestation document that the
verifier accepts, for the certificate's own key. TLS has proven by then that the server holds that key. Until then nothing can be
written or read, whatever the library above does; afterwards, nothing once the document has become too old.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Optional, Union

from ._core import Refused, VerifiedDocument, Verifier

Verified = Callable[[Optional[str], VerifiedDocument], None]
"""What is called with the server's name and its document."""


def holds(connection: object) -> bool:
    """Whether a connection was attested and its document is still accepted."""
    document = getattr(connection, "document", None)
    context = getattr(connection, "context", None)
    if document is None or not isinstance(context, AttestedContext):
        return False
    return context.verifier.holds(document)


def _judge(connection: Union[AttestedSocket, AttestedObject]) -> None:
    """The TLS handshake is over: decides whether the connection may be used."""
    context = connection.context
    if not isinstance(context, AttestedContext):
        raise Refused("the connection is not of an attested context")
    certificate = connection.getpeercert(binary_form=True)
    if not certificate:
        raise Refused("the server sent no certificate")
    document = context.verifier.verify_tls_certificate(certificate)
    connection.document = document
    if context.on_verified is not None:
        context.on_verified(connection.server_hostname, document)


def _ensure(connection: Union[AttestedSocket, AttestedObject]) -> None:
    """OpenSSL would do a handshake on the first write: ours comes before."""
    if connection.document is None:
        connection.do_handshake()
    if not holds(connection):
        raise Refused("the server's document has become too old for this connection: connect again")


class AttestedSocket(ssl.SSLSocket):
    """A socket whose handshake includes the verification of the server's document."""

    document: Optional[VerifiedDocument] = None

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        try:
            _judge(self)
        except BaseException:
            self.close()
            raise

    def read(self, len: int = 1024, buffer: Optional[Any] = None) -> Any:
        if self.document is None:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        _ensure(self)
        return super().write(data)

    def send(self, data: Any, flags: int = 0) -> int:
        _ensure(self)
        return super().send(data, flags)

    def unwrap(self) -> Any:
        """What comes after TLS would be neither secret nor attested."""
        raise ssl.SSLError("attested TLS lasts as long as its connection")


class AttestedObject(ssl.SSLObject):
    """The same for libraries that move the bytes themselves, as asyncio does."""

    document: Optional[VerifiedDocument] = None

    def do_handshake(self) -> None:
        super().do_handshake()
        _judge(self)

    def read(self, len: int = 1024, buffer: Optional[Any] = None) -> Any:
        if self.document is None:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        _ensure(self)
        return super().write(data)


class AttestedContext(ssl.SSLContext):
    """TLS 1.3 with servers whose certificate `verifier` accepts, and with no others.

    Certificate authorities and names have no say: settings for them are ignored. `on_verified` is called with each connection's server name
    and document.
    """

    sslsocket_class = AttestedSocket
    sslobject_class = AttestedObject
    verifier: Verifier
    on_verified: Optional[Verified]

    def __new__(cls, verifier: Verifier, on_verified: Optional[Verified] = None) -> AttestedContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, verifier: Verifier, on_verified: Optional[Verified] = None) -> None:
        self.verifier = verifier
        self.on_verified = on_verified
        # The real settings, behind the ones that are shown below.
        real: Any = super(AttestedContext, AttestedContext)
        real.check_hostname.__set__(self, False)
        real.verify_mode.__set__(self, ssl.CERT_NONE)
        real.minimum_version.__set__(self, ssl.TLSVersion.TLSv1_3)

    @property
    def check_hostname(self) -> bool:
        return False

    @check_hostname.setter
    def check_hostname(self, value: bool) -> None:
        pass

    @property  # type: ignore[override]
    def verify_mode(self) -> ssl.VerifyMode:
        """The server is verified, if by other means than OpenSSL's."""
        return ssl.CERT_REQUIRED

    @verify_mode.setter
    def verify_mode(self, value: ssl.VerifyMode) -> None:
        pass

    @property  # type: ignore[override]
    def minimum_version(self) -> ssl.TLSVersion:
        return ssl.TLSVersion.TLSv1_3

    @minimum_version.setter
    def minimum_version(self, value: ssl.TLSVersion) -> None:
        pass
