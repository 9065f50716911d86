"""Attested TLS against a real server: `bindings/core/examples/attested_server.rs`, the one that the Rust client is tested with."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

import httpx
import pytest
import requests

import enclos
import enclos.httpx
import enclos.requests
import enclos.tls

CHANNELS = Path(__file__).resolve().parents[3] / "crates/client/tests/vectors/manifest.json"
MANIFEST: dict[str, Any] = json.loads(CHANNELS.read_text())


class Server:
    """The server, as long as the test runs."""

    def __init__(self, fault: str) -> None:
        self.process = subprocess.Popen(
            [os.environ["ENCLOS_ATTESTED_SERVER"], fault], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        said = json.loads(self._line())
        self.url: str = said["url"]
        self.root: bytes = said["root"].encode()
        self.pcr0: str = said["pcr0"]

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._line().strip()

    def verifier(self, **more: Any) -> enclos.Verifier:
        return enclos.Verifier({"test": self.root}, **{"pcrs": {0: self.pcr0}, **more})


@contextlib.contextmanager
def server(fault: str = "none") -> Iterator[Server]:
    started = Server(fault)
    try:
        yield started
    finally:
        assert started.process.stdin is not None
        started.process.stdin.close()
        assert started.process.wait(20) == 0


def with_requests(url: str, verifier: enclos.Verifier) -> bytes:
    with enclos.requests.session(verifier) as session:
        return session.post(url + "/process", data=b"a secret", timeout=30).content


def with_httpx(url: str, verifier: enclos.Verifier) -> bytes:
    with httpx.Client(transport=enclos.httpx.AttestedTransport(verifier), timeout=30) as client:
        return client.post(url + "/process", content=b"a secret").content


def with_async_httpx(url: str, verifier: enclos.Verifier) -> bytes:
    async def post() -> bytes:
        async with httpx.AsyncClient(transport=enclos.httpx.AsyncAttestedTransport(verifier), timeout=30) as client:
            return (await client.post(url + "/process", content=b"a secret")).content

    return asyncio.run(post())


CLIENTS = pytest.mark.parametrize("post", [with_requests, with_httpx, with_async_httpx])


@CLIENTS
def test_a_request_travels_inside(post: Any) -> None:
    with server() as enclave, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert post(enclave.url, enclave.verifier()) == b'{"result": "in the open"}'
        assert enclave.ask("heard") == "1"


@CLIENTS
@pytest.mark.parametrize(
    "fault, reason",
    [
        ("ordinary", "carries no attestation document"),
        ("copied-document", "for another key"),
        ("other-purpose", "not made for a TLS key"),
        ("old", "expected at most 300.000 s"),
        ("debug", "debug"),
    ],
)
def test_nothing_is_sent_to_who_is_not_attested(post: Any, fault: str, reason: str) -> None:
    with server(fault) as enclave:
        with pytest.raises(enclos.Refused) as refused:
            post(enclave.url, enclave.verifier())
        assert reason in "; ".join(refused.value.reasons)
        assert enclave.ask("heard") == "0"


@CLIENTS
@pytest.mark.parametrize("fault", ["copied-certificate", "tls12"])
def test_a_copied_certificate_and_old_tls_end_in_the_handshake(post: Any, fault: str) -> None:
    with server(fault) as enclave:
        with pytest.raises((requests.exceptions.SSLError, httpx.ConnectError)):
            post(enclave.url, enclave.verifier())
        assert enclave.ask("heard") == "0"


@CLIENTS
def test_another_image_is_refused(post: Any) -> None:
    with server() as enclave:
        with pytest.raises(enclos.Refused, match="PCR0 is"):
            post(enclave.url, enclave.verifier(pcrs={0: "ab" * 48}))
        assert enclave.ask("heard") == "0"


@CLIENTS
def test_other_urls_are_refused(post: Any) -> None:
    with server() as enclave:
        plain = enclave.url.replace("https://", "http://")
        with pytest.raises((requests.exceptions.InvalidSchema, httpx.UnsupportedProtocol)):
            post(plain, enclave.verifier())
        assert enclave.ask("accepted") == "0"


def test_connections_are_used_again_and_callers_hear_of_documents() -> None:
    heard: list[tuple[Optional[str], enclos.VerifiedDocument]] = []
    with server() as enclave:
        with enclos.requests.session(enclave.verifier(), lambda *verified: heard.append(verified)) as session:
            for _ in range(3):
                session.post(enclave.url + "/process", data=b"x", timeout=30)
        assert (enclave.ask("heard"), enclave.ask("accepted")) == ("3", "1")
    [(name, document)] = heard
    assert name == "127.0.0.1" and document.root == "test" and document.pcrs[0] == enclave.pcr0


def connected(enclave: Server) -> socket.socket:
    address = urlsplit(enclave.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def test_a_connection_ends_with_its_verdict() -> None:
    class Aging:
        """A verifier whose time is over when the test says so."""

        def __init__(self, inner: enclos.Verifier) -> None:
            self.inner, self.over = inner, False

        def verify_tls_certificate(self, certificate: bytes) -> enclos.VerifiedDocument:
            return self.inner.verify_tls_certificate(certificate)

        asks_for_nonce = False

        def holds(self, document: enclos.VerifiedDocument) -> bool:
            late = document.timestamp_ms + 301_000
            return self.inner.holds(document, now_ms=late if self.over else None)

    with server() as enclave:
        aging: Any = Aging(enclave.verifier())
        with enclos.requests.session(aging) as session:
            session.post(enclave.url + "/process", data=b"x", timeout=30)
            aging.over = True
            # A fresh connection, whose document is over as well.
            with pytest.raises(enclos.Refused, match="too old"):
                session.post(enclave.url + "/process", data=b"x", timeout=30)
        assert (enclave.ask("heard"), enclave.ask("accepted")) == ("1", "2")


def exchange(context: enclos.tls.AttestedContext, enclave: Server, name: str = "enclave") -> bool:
    """One request over a connection of its own; whether it resumed a session."""
    with connected(enclave) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
        tls.sendall(b"POST /process HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
        answer = b""
        while not answer.endswith(b"}"):
            answer += tls.recv(65536)
        return bool(tls.session_reused)


class Counting:
    """A verifier that counts documents, and whose time is over when the test says so."""

    def __init__(self, inner: enclos.Verifier) -> None:
        self.inner, self.documents, self.later_ms = inner, 0, 0
        self.asks_for_nonce = inner.asks_for_nonce

    def verify_tls_certificate(self, certificate: bytes, **answer: Any) -> enclos.VerifiedDocument:
        self.documents += 1
        return self.inner.verify_tls_certificate(certificate, **answer)

    def holds(self, document: enclos.VerifiedDocument, **nonce: Any) -> bool:
        return self.inner.holds(document, now_ms=document.timestamp_ms + self.later_ms, **nonce)


NONCES = pytest.mark.parametrize("nonces", [False, True])


@NONCES
def test_a_resumed_session_looks_at_no_document(nonces: bool) -> None:
    heard: list[enclos.VerifiedDocument] = []
    with server() as enclave:
        counting: Any = Counting(enclave.verifier())
        context = enclos.tls.AttestedContext(counting, lambda _, document: heard.append(document), nonces=nonces)
        assert [exchange(context, enclave) for _ in range(4)] == [False, True, True, True]
        assert (enclave.ask("accepted"), enclave.ask("resumed"), counting.documents) == ("4", "3", 1)
        assert len(heard) == 4 and all(document is heard[0] for document in heard)
        assert not exchange(context, enclave, "another")


@NONCES
def test_a_session_ends_with_its_verdict(nonces: bool) -> None:
    with server() as enclave:
        counting: Any = Counting(enclave.verifier())
        context = enclos.tls.AttestedContext(counting, nonces=nonces)
        assert [exchange(context, enclave) for _ in range(2)] == [False, True]
        counting.later_ms = 301_000
        with pytest.raises(enclos.Refused, match="too old"):
            exchange(context, enclave)
        counting.later_ms = 0
        assert [exchange(context, enclave) for _ in range(2)] == [False, True]
        assert counting.documents == 3


@CLIENTS
def test_an_answer_that_somebody_cuts_is_no_answer(post: Any) -> None:
    with server("until-the-end") as enclave:
        assert post(enclave.url, enclave.verifier()) == b'{"allowed": [1, 2, 3]}'
    with server("cut") as enclave:
        with pytest.raises((ssl.SSLError, requests.exceptions.RequestException, httpx.HTTPError), match="was cut"):
            post(enclave.url, enclave.verifier())


@NONCES
def test_a_session_ends_when_the_clock_is_set_back(nonces: bool) -> None:
    with server() as enclave:
        counting: Any = Counting(enclave.verifier())
        context = enclos.tls.AttestedContext(counting, nonces=nonces)
        # Five seconds are the difference of clocks that verifiers accept.
        counting.later_ms = -5_000
        assert [exchange(context, enclave) for _ in range(2)] == [False, True]
        counting.later_ms = -5_001
        with pytest.raises(enclos.Refused, match="connect again"):
            exchange(context, enclave)
        assert (enclave.ask("heard"), counting.documents) == ("2", 2)


def test_a_session_has_the_verdict_that_it_was_kept_with_whatever_its_name() -> None:
    """A server that sees another's ticket travel could give out the same bytes."""

    class Session:
        id, has_ticket = b"the same ticket", True

    with server() as one, server() as other:
        verifier = enclos.Verifier({"one": one.root, "other": other.root})
        context = enclos.tls.AttestedContext(verifier)
        verdicts: list[enclos.tls.Verdict] = []
        for enclave in [one, other]:
            with connected(enclave) as raw, context.wrap_socket(raw, server_hostname="enclave") as tls:
                verdicts.append(tls._verdict)
        for enclave, verdict in zip([one, other], verdicts):
            context._sessions.keep(enclave.url, Session(), verdict)  # type: ignore[arg-type]
        offered = [context._sessions.take(enclave.url, verifier)[1] for enclave in [one, other]]
        assert offered[0] is verdicts[0] and offered[1] is verdicts[1]
        assert [verdict.document.root for verdict in verdicts] == ["one", "other"]


def test_sockets_are_wrapped_as_the_standard_library_wraps_them() -> None:
    with server() as enclave:
        context = enclos.tls.AttestedContext(enclave.verifier())
        address = urlsplit(enclave.url)
        # Connected later, with a handshake then.
        with socket.socket() as raw, context.wrap_socket(raw, server_hostname="enclave") as tls:
            assert not enclos.tls.holds(tls)
            tls.settimeout(30)
            tls.connect((address.hostname, address.port))
            assert enclos.tls.holds(tls)
        # A handshake when the caller says so.
        with connected(enclave) as raw, context.wrap_socket(raw, do_handshake_on_connect=False) as tls:
            assert not enclos.tls.holds(tls)
            tls.do_handshake()
            assert enclos.tls.holds(tls)
        with connected(enclave) as raw:
            raw.setblocking(False)
            with pytest.raises(ValueError, match="non-blocking"):
                context.wrap_socket(raw, server_hostname="enclave")


def test_sessions_of_the_callers_are_not_taken_up() -> None:
    with server() as enclave:
        strict = enclos.tls.AttestedContext(enclave.verifier())
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
        with connected(enclave) as raw, plain.wrap_socket(raw) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            tls.recv(65536)
            session = tls.session
            assert session is not None and session.has_ticket
        with connected(enclave) as raw, strict.wrap_socket(raw, session=session) as tls:
            assert not tls.session_reused and enclos.tls.holds(tls)


def test_a_server_that_restarted_is_judged_again() -> None:
    with server() as first, server() as second:
        verifier = enclos.Verifier({"one": first.root, "two": second.root})
        counting: Any = Counting(verifier)
        context = enclos.tls.AttestedContext(counting)
        name = ("enclave", ("the", "same"))
        for enclave in [first, second]:
            session, offered = context._sessions.take(name, verifier)
            assert (offered is None) == (enclave is first)
            with connected(enclave) as raw:
                tls: Any = ssl.SSLContext.wrap_socket(
                    context, raw, do_handshake_on_connect=False, server_hostname="enclave", session=session
                )
                tls._server, tls._offered = name, offered
                tls.sendall(b"POST /process HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
                tls.recv(65536)
                assert not tls.session_reused and tls.document.root == ("one" if enclave is first else "two")
                tls.close()
        assert counting.documents == 2


@pytest.mark.parametrize("post", [with_requests, with_httpx, with_async_httpx])
def test_a_policy_that_asks_for_a_nonce_gets_one(post: Any) -> None:
    with server() as enclave:
        pcrs = {"0": enclave.pcr0}
        policy = json.dumps({"version": 1, "require": {"all": [{"pcrs": pcrs}, {"nonce": "required"}]}})
        verifier = enclave.verifier(policy=policy)
        assert verifier.asks_for_nonce and not enclave.verifier().asks_for_nonce
        assert post(enclave.url, verifier) == b'{"result": "in the open"}'
        with pytest.raises(enclos.Refused, match="nonce"):
            exchange(enclos.tls.AttestedContext(verifier, nonces=False), enclave)
        assert enclave.ask("heard") == "1"


@CLIENTS
@pytest.mark.parametrize(
    "fault, reason",
    [
        ("no-nonces", "does not answer nonces"),
        ("other-nonce", "nonce is"),
        ("long-answer", "4294967295 bytes"),
        ("copied-document", "for another key"),
    ],
)
def test_a_nonce_that_is_not_answered_ends_the_connection(post: Any, fault: str, reason: str) -> None:
    with server(fault) as enclave:
        policy = json.dumps({"version": 1, "require": {"nonce": "required"}})
        with pytest.raises(enclos.Refused, match=reason):
            post(enclave.url, enclave.verifier(policy=policy))
        assert enclave.ask("heard") == "0"


def test_sessions_are_bounded_and_go_oldest_first() -> None:
    with server() as enclave:
        context = enclos.tls.AttestedContext(enclave.verifier())
        names = [f"enclave-{number}" for number in range(enclos.tls.MAX_SERVERS + 1)]
        for name in names[:3]:
            exchange(context, enclave, name)
        [(address, kept)] = [(key[1], value) for key, value in context._sessions._servers.items() if key[0] == names[0]]
        session, verdict = kept[-1]
        for name in names[3:]:
            context._sessions.keep((name, address), session, verdict)
        assert len(context._sessions._servers) == enclos.tls.MAX_SERVERS
        assert not exchange(context, enclave, names[0]) and exchange(context, enclave, names[2])
        for _ in range(20):
            context._sessions.keep(names[0], session, verdict)
        assert len(context._sessions._servers[names[0]]) == enclos.tls.MAX_SESSIONS


def test_asynchronous_clients_resume_sessions() -> None:
    async def post(transport: enclos.httpx.AsyncAttestedTransport, url: str) -> bytes:
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            headers = {"connection": "close"}
            return (await client.post(url + "/process", content=b"x", headers=headers)).content

    async def twice(verifier: Any, url: str) -> None:
        transport = enclos.httpx.AsyncAttestedTransport(verifier)
        for _ in range(2):
            await post(transport, url)

    with server() as enclave:
        counting: Any = Counting(enclave.verifier())
        asyncio.run(twice(counting, enclave.url))
        assert (enclave.ask("accepted"), enclave.ask("resumed"), counting.documents) == ("2", "1", 1)


def test_a_first_write_does_not_get_around_the_verification() -> None:
    with server("ordinary") as enclave:
        context = enclos.tls.AttestedContext(enclave.verifier())
        with connected(enclave) as raw:
            lazy = context.wrap_socket(raw, do_handshake_on_connect=False)
            with pytest.raises(enclos.Refused):
                lazy.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        for use in (lambda tls: tls.write(b"x"), lambda tls: tls.read(), lambda tls: tls.do_handshake()):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="x")
            with connected(enclave) as raw, pytest.raises(enclos.Refused):
                pump(tls, incoming, outgoing, raw, use)
        assert enclave.ask("heard") == "0"


def pump(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, raw: socket.socket, use: Any) -> None:
    for _ in range(20):
        try:
            return use(tls)  # type: ignore[no-any-return]
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(65536))


def test_settings_of_libraries_do_not_weaken_a_context() -> None:
    with server("ordinary") as enclave:
        context = enclos.tls.AttestedContext(enclave.verifier())
        context.check_hostname = True
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        assert (context.check_hostname, context.minimum_version) == (False, ssl.TLSVersion.TLSv1_3)
        with connected(enclave) as raw, pytest.raises(enclos.Refused):
            context.wrap_socket(raw)
    with server() as enclave:
        context = enclos.tls.AttestedContext(enclave.verifier())
        with connected(enclave) as raw, context.wrap_socket(raw) as tls:
            assert enclos.tls.holds(tls) and tls.version() == "TLSv1.3"
            with pytest.raises(ssl.SSLError):
                tls.unwrap()


def test_redirections_do_not_leave_attested_tls() -> None:
    with server() as enclave, enclos.requests.session(enclave.verifier()) as session:
        assert type(session.get_adapter("http://elsewhere")) is enclos.requests.AttestedAdapter
        assert not session.trust_env


def test_many_threads_share_a_session() -> None:
    with server() as enclave, enclos.requests.session(enclave.verifier()) as session:
        answers: list[bytes] = []
        post = lambda: answers.append(session.post(enclave.url + "/process", data=b"x", timeout=30).content)  # noqa: E731
        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [b'{"result": "in the open"}'] * 8


@pytest.mark.parametrize("name", sorted(MANIFEST["certificates"]))
def test_vector(name: str) -> None:
    case = MANIFEST["certificates"][name]
    verifier = enclos.Verifier({"test": MANIFEST["root_pem"].encode()}, pcrs={0: MANIFEST["pcr0"]})
    certificate = base64.b64decode(case["der"])
    if case["refused"] is None:
        assert verifier.verify_tls_certificate(certificate, now_ms=MANIFEST["now_ms"]).root == "test"
    else:
        with pytest.raises(enclos.Refused) as refused:
            verifier.verify_tls_certificate(certificate, now_ms=MANIFEST["now_ms"])
        assert case["refused"] in ": ".join(refused.value.reasons)


def test_a_verifier_for_records_judges_no_server() -> None:
    verifier = enclos.Verifier({"test": MANIFEST["root_pem"].encode()}, archival=True)
    with pytest.raises(ValueError, match="attested TLS"):
        verifier.verify_tls_certificate(base64.b64decode(MANIFEST["certificates"]["good"]["der"]))
