"""Attested TLS for `requests`.

    session = enclos.requests.session(verifier)
    session.post("https://enclave.example:8443/process", json={"data": "only the enclave reads this"})

A server that is not accepted raises `enclos.Refused`; no byte of the request has left by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, Union

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

from ._core import Verifier
from .tls import AttestedContext, Verified, holds


class _Connection(HTTPSConnection):
    """Is used again only while the server's document is accepted."""

    @property
    def is_connected(self) -> bool:
        return super().is_connected and holds(self.sock)


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


class AttestedAdapter(HTTPAdapter):
    """Carries requests over attested TLS, and refuses to carry them otherwise: mount it for `https://` and `http://`.

    `nonces` is `enclos.tls.AttestedContext`'s.
    """

    def __init__(
        self,
        verifier: Verifier,
        on_verified: Optional[Verified] = None,
        *,
        nonces: Optional[bool] = None,
        **options: Any,
    ) -> None:
        self._context = AttestedContext(verifier, on_verified, nonces=nonces)
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        options.update(ssl_context=self._context, assert_hostname=False)
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"https": _Pool}

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Union[None, float, tuple[float, float], tuple[float, None]] = None,
        verify: Union[bool, str] = True,
        cert: Union[None, bytes, str, tuple[Union[bytes, str], Union[bytes, str]]] = None,
        proxies: Optional[Mapping[str, str]] = None,
    ) -> requests.Response:
        """`verify`, `cert` and `proxies` have no say."""
        if not (request.url or "").lower().startswith("https://"):
            raise requests.exceptions.InvalidSchema(f"{request.url} is not an https URL: attested TLS was asked for")
        return super().send(request, stream=stream, timeout=timeout, verify=False, cert=None, proxies={})


def session(
    verifier: Verifier, on_verified: Optional[Verified] = None, *, nonces: Optional[bool] = None
) -> requests.Session:
    """A session that speaks attested TLS alone: redirections to anything else and the environment's proxies are not followed."""
    made = requests.Session()
    made.trust_env = False
    adapter = AttestedAdapter(verifier, on_verified, nonces=nonces)
    made.adapters.clear()
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made
