"""Attested TLS for everything that takes an `ssl.SSLContext`.

The handshake of a connection made with `AttestedContext` is over only when the server's certificate carries an attestation document that the
verifier accepts, for the certificate's own key. TLS has proven by then that the server holds that key. Until then nothing can be
written or read, whatever the library above does; afterwards, nothing once the document has become too old.

Sessions are resumed while the verdict under which they came to be holds: a connection to a server that is known costs one round trip, no
document and no signature. With nonces, each full handshake ends with a document that repeats a nonce of this client's.
"""

from __future__ import annotations

import secrets
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

from ._core import Refused, VerifiedDocument, Verifier

Verified = Callable[[Optional[str], VerifiedDocument], None]
"""What is called with the server's name and its document."""

NONCE_ALPN = "enclos-nonce/1"
"""Says that a nonce follows the handshake. Layout: `crates/client/SPEC.md`."""

NONCE_LEN = 32
DOCUMENT_MAX = 16_640

MAX_SERVERS = 64
"""Servers whose sessions are kept; those that were used longest ago are forgotten first."""

MAX_SESSIONS = 8
"""For each of them; each is used once."""


@dataclass(frozen=True)
class Verdict:
    """What was found out about a server."""

    document: VerifiedDocument
    nonce: Optional[bytes]
    """This client's own, if there was one."""

    def holds(self, verifier: Verifier) -> bool:
        """Whether it would be the same now, apart from signatures, which do not change."""
        if self.nonce is None:
            return verifier.holds(self.document)
        return verifier.holds(self.document, nonce=self.nonce)


class _Sessions:
    """Sessions, each with the verdict under which it came to be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: OrderedDict[Any, list[tuple[ssl.SSLSession, Verdict]]] = OrderedDict()

    def take(self, server: Any, verifier: Verifier) -> tuple[Optional[ssl.SSLSession], Optional[Verdict]]:
        """A session to offer and its verdict, if this holds. One that does not takes the server's others with it."""
        with self._lock:
            kept = self._servers.get(server)
            if not kept:
                return None, None
            session, verdict = kept.pop()
            if not verdict.holds(verifier):
                del self._servers[server]
                return None, None
            return session, verdict

    def keep(self, server: Any, session: ssl.SSLSession, verdict: Verdict) -> None:
        with self._lock:
            kept = self._servers.setdefault(server, [])
            # Those of an older verdict end sooner.
            kept[:] = [(old, of) for old, of in kept if of is verdict][1 - MAX_SESSIONS :] + [(session, verdict)]
            self._servers.move_to_end(server)
            while len(self._servers) > MAX_SERVERS:
                self._servers.popitem(last=False)


def holds(connection: object) -> bool:
    """Whether a connection was attested and its document is still accepted."""
    verdict = getattr(connection, "_verdict", None)
    context = getattr(connection, "context", None)
    return isinstance(verdict, Verdict) and isinstance(context, AttestedContext) and verdict.holds(context.verifier)


class _Attested:
    """What both kinds of connection have in common. Every step may be cut short by a socket that would block, and is then repeated."""

    _verdict: Optional[Verdict] = None
    # The verdict of the session that was offered to the server. A session's name says nothing: servers choose it.
    _offered: Optional[Verdict] = None
    # The name of the session that was resumed.
    _used: Optional[bytes] = None
    # The exchange of the nonce.
    _nonce: Optional[bytes] = None
    _asked: bool = False
    _answer: bytes = b""
    # Where this connection's session is kept, and whether it is.
    _server: Any = None
    _kept: bool = False
    # Of the classes below.
    context: Any
    session: Any
    server_hostname: Any

    @property
    def document(self) -> Optional[VerifiedDocument]:
        return self._verdict.document if self._verdict is not None else None

    def do_handshake(self, *arguments: Any) -> None:
        """TLS first, then the verdict."""
        super().do_handshake(*arguments)  # type: ignore[misc]
        if self._verdict is None:
            context = self.context
            if not isinstance(context, AttestedContext):
                raise Refused("the connection is not of an attested context")
            verdict = self._judge(context)
            self._verdict = verdict
            if context.on_verified is not None:
                context.on_verified(self.server_hostname, verdict.document)

    def _judge(self, context: AttestedContext) -> Verdict:
        certificate = self.getpeercert(binary_form=True)  # type: ignore[attr-defined]
        if not certificate:
            raise Refused("the server sent no certificate")
        if context.nonces and self.selected_alpn_protocol() != NONCE_ALPN:  # type: ignore[attr-defined]
            raise Refused("the server does not answer nonces: renew the enclave's image, or do not ask for nonces")
        if self._known is not None:
            if context.nonces:
                self._say(b"\0")
            return self._known
        if not context.nonces:
            return Verdict(context.verifier.verify_tls_certificate(certificate), None)
        nonce, answer = self._challenge()
        return Verdict(context.verifier.verify_tls_certificate(certificate, document=answer, nonce=nonce), nonce)

    @property
    def _known(self) -> Optional[Verdict]:
        """The verdict of the session that the server took up."""
        if not self.session_reused:  # type: ignore[attr-defined]
            return None
        if self._used is None and self.session is not None:
            self._used = self.session.id
        return self._offered

    def _say(self, frame: bytes) -> None:
        if not self._asked:
            super().write(frame)  # type: ignore[misc]
            self._asked = True

    def _challenge(self) -> tuple[bytes, bytes]:
        """One byte of length and the nonce; four bytes of length and the document."""
        nonce = self._nonce = self._nonce or secrets.token_bytes(NONCE_LEN)
        self._say(bytes([NONCE_LEN]) + nonce)
        self._hear(4)
        length = int.from_bytes(self._answer[:4], "big")
        if length > DOCUMENT_MAX:
            raise Refused(f"the server answered a nonce with {length} bytes, expected a document of at most {DOCUMENT_MAX}")
        self._hear(4 + length)
        return nonce, self._answer[4:]

    def _hear(self, length: int) -> None:
        while len(self._answer) < length:
            more = super().read(length - len(self._answer))  # type: ignore[misc]
            if not more:
                raise ssl.SSLEOFError("the connection ended before the server answered the nonce")
            self._answer += more

    def _ensure(self) -> None:
        """OpenSSL would do a handshake on the first write: ours comes before."""
        if self._verdict is None:
            self.do_handshake()
        if not holds(self):
            raise Refused("the server's document has become too old for this connection: connect again")

    def read(self, len: int = 1024, buffer: Optional[Any] = None) -> Any:
        if self._verdict is None:
            self.do_handshake()
        try:
            read = super().read(len, buffer)  # type: ignore[misc]
        except ssl.SSLError as error:
            # Python has two names for it, by version. Under either the libraries above would take it for the end that the server meant.
            if not isinstance(error, ssl.SSLEOFError) and error.reason != "UNEXPECTED_EOF_WHILE_READING":
                raise
            raise ssl.SSLError("the connection was cut: the server did not say that it had sent everything") from error
        if not self._kept:
            self._kept = True
            self._keep(self._verdict, self.session)
        return read

    def _keep(self, verdict: Optional[Verdict], session: Optional[ssl.SSLSession]) -> None:
        """Tickets come before the first bytes of the application's."""
        if verdict is not None and session is not None and session.has_ticket and session.id != self._used:
            self.context._sessions.keep(self._server, session, verdict)

    def write(self, data: Any) -> int:
        self._ensure()
        return super().write(data)  # type: ignore[misc,no-any-return]


class AttestedSocket(_Attested, ssl.SSLSocket):
    """A socket whose handshake includes the verification of the server's document."""

    def do_handshake(self, *arguments: Any) -> None:
        try:
            super().do_handshake(*arguments)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:
            self.close()
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        self._ensure()
        return super().send(data, flags)

    def unwrap(self) -> Any:
        """What comes after TLS would be neither secret nor attested."""
        raise ssl.SSLError("attested TLS lasts as long as its connection")


class AttestedObject(_Attested, ssl.SSLObject):
    """The same for libraries that move the bytes themselves, as asyncio does."""


class AttestedContext(ssl.SSLContext):
    """TLS 1.3 with servers whose certificate `verifier` accepts, and with no others.

    Certificate authorities, names and sessions of the caller's have no say: settings for them are ignored. `on_verified` is called with each
    connection's server name and document. `nonces` has the server make a document for a nonce of ours in each full handshake; unless told
    otherwise it does when the verifier's policy asks for a nonce.
    """

    sslsocket_class = AttestedSocket
    sslobject_class = AttestedObject
    verifier: Verifier
    on_verified: Optional[Verified]
    nonces: bool

    def __new__(
        cls, verifier: Verifier, on_verified: Optional[Verified] = None, *, nonces: Optional[bool] = None
    ) -> AttestedContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(
        self, verifier: Verifier, on_verified: Optional[Verified] = None, *, nonces: Optional[bool] = None
    ) -> None:
        self.verifier = verifier
        self.on_verified = on_verified
        self.nonces = verifier.asks_for_nonce if nonces is None else nonces
        self._sessions = _Sessions()
        # The real settings, behind the ones that are shown below.
        real: Any = super(AttestedContext, AttestedContext)
        real.check_hostname.__set__(self, False)
        real.verify_mode.__set__(self, ssl.CERT_NONE)
        real.minimum_version.__set__(self, ssl.TLSVersion.TLSv1_3)
        # Debian 12's Python has OpenSSL take a cut for an end. Before Python 3.10 there was no such option.
        cut_is_end = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        real.options.__set__(self, self.options & ~cut_is_end)
        if self.nonces:
            super().set_alpn_protocols([NONCE_ALPN])

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Ignored with nonces, which are asked for by that means."""
        if not self.nonces:
            super().set_alpn_protocols(alpn_protocols)

    def wrap_socket(
        self,
        sock: Any,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: Any = None,
        session: Optional[ssl.SSLSession] = None,
    ) -> Any:
        address = _address(sock)
        server = server_hostname, address
        session, offered = self._sessions.take(server, self.verifier)
        # The handshake has to know what was offered. A cut is no end, whatever the caller thinks of it.
        made: Any = super().wrap_socket(sock, server_side, False, False, server_hostname, session)
        made._server, made._offered = server, offered
        made.do_handshake_on_connect = do_handshake_on_connect
        if do_handshake_on_connect and address is not None:
            if made.gettimeout() == 0:
                made.close()
                raise ValueError("do_handshake_on_connect should not be specified for non-blocking sockets")
            made.do_handshake()
        return made

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: Any = None,
        session: Optional[ssl.SSLSession] = None,
    ) -> Any:
        session, offered = self._sessions.take(server_hostname, self.verifier)
        made: Any = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        made._server, made._offered = server_hostname, offered
        return made

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


def _address(sock: Any) -> Any:
    """The other end's, with its port; nothing when there is none yet."""
    try:
        return sock.getpeername()
    except OSError:
        return None
