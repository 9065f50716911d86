"""Attested TLS for `httpx`.

    client = httpx.Client(transport=enclos.httpx.AttestedTransport(verifier))
    client.post("https://enclave.example:8443/process", json={"data": "only the enclave reads this"})

A server that is not accepted raises `enclos.Refused`; no byte of the request has left by then.
"""

from __future__ import annotations

from typing import Any, Optional

import httpx

from ._core import Verifier
from .tls import AttestedContext, Verified


def _check(request: httpx.Request) -> None:
    if request.url.scheme != "https":
        raise httpx.UnsupportedProtocol(f"{request.url} is not an https URL: attested TLS was asked for", request=request)


def _options(
    verifier: Verifier, on_verified: Optional[Verified], nonces: Optional[bool], options: dict[str, Any]
) -> dict[str, Any]:
    context = AttestedContext(verifier, on_verified, nonces=nonces)
    return {**options, "verify": context, "trust_env": False, "http2": False, "proxy": None}


class AttestedTransport(httpx.HTTPTransport):
    """Carries requests over attested TLS, and refuses to carry them otherwise.

    `nonces` is `enclos.tls.AttestedContext`'s, `options` are `httpx.HTTPTransport`'s.
    """

    def __init__(
        self,
        verifier: Verifier,
        on_verified: Optional[Verified] = None,
        *,
        nonces: Optional[bool] = None,
        **options: Any,
    ) -> None:
        super().__init__(**_options(verifier, on_verified, nonces, options))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _check(request)
        return super().handle_request(request)


class AsyncAttestedTransport(httpx.AsyncHTTPTransport):
    """The same for `httpx.AsyncClient`."""

    def __init__(
        self,
        verifier: Verifier,
        on_verified: Optional[Verified] = None,
        *,
        nonces: Optional[bool] = None,
        **options: Any,
    ) -> None:
        super().__init__(**_options(verifier, on_verified, nonces, options))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _check(request)
        return await super().handle_async_request(request)
