"""How a client reaches a running DOMA: addresses, CA and token from ``run.json``, and uproot over https."""

import json
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from doma.core.errors import ConfigError, NotFound, ServiceUnavailable


@dataclass(frozen=True, slots=True)
class Access:
    """One running system, as its ``run.json`` describes it. Picklable: Dask workers get it as it is."""

    https: str
    ca_file: str
    token_file: str
    endpoints: dict[str, dict[str, str]]
    services: dict[str, str]

    @classmethod
    def read(cls, home: Path) -> "Access":
        """The system that runs in a home.

        Raises:
            ServiceUnavailable: nothing runs there. ConfigError: the file is damaged.
        """
        file = home / "run.json"
        try:
            run = json.loads(file.read_text())
            return cls(run["https"], run["ca_file"], run["token_file"], run["endpoints"], run["services"])
        except FileNotFoundError as e:
            raise ServiceUnavailable(
                f"{home}: nothing runs here; start it with 'doma up --home {home}'"
            ) from e
        except (ValueError, KeyError, TypeError) as e:
            raise ConfigError(f"{file}: damaged ({e}); stop the process and start 'doma up' again") from e

    def token(self) -> str:
        """The token as it is now: the file is renewed in place."""
        return Path(self.token_file).read_text().strip()

    def tls(self) -> ssl.SSLContext:
        """A TLS context that trusts the system's CA only."""
        return ssl.create_default_context(cafile=self.ca_file)

    def endpoint(self, name: str) -> str:
        """The https address of an endpoint.

        Raises:
            NotFound: no such endpoint; names those there are.
        """
        try:
            return self.endpoints[name]["https"]
        except KeyError as e:
            raise NotFound(
                f"there is no endpoint {name!r} here; endpoints: {', '.join(self.endpoints)}"
            ) from e

    def http(self, timeout: float = 60) -> httpx.Client:
        """A client for control calls and uploads; the token is read anew for every request."""

        def authorise(request: httpx.Request) -> None:
            request.headers["Authorization"] = f"Bearer {self.token()}"

        return httpx.Client(
            base_url=self.https, verify=self.tls(), timeout=timeout, event_hooks={"request": [authorise]}
        )

    def uproot_options(self) -> dict[str, Any]:
        """Keyword arguments for ``uproot.open`` and coffea's ``uproot_options``: token, CA, byte counting."""
        return {"get_client": partial(_session, self), "skip_instance_cache": True}


class _Received:
    """Body bytes that this process received through :meth:`Access.uproot_options`."""

    total = 0


def received() -> int:
    """Body bytes received so far by this process; in a Dask cluster: ``client.run(received)``."""
    return _Received.total


async def _session(access: Access, **options: Any) -> aiohttp.ClientSession:
    async def count(session: Any, context: Any, params: aiohttp.TraceResponseChunkReceivedParams) -> None:
        _Received.total += len(params.chunk)

    trace = aiohttp.TraceConfig()
    trace.on_response_chunk_received.append(count)
    headers = {"Authorization": f"Bearer {access.token()}"}
    connector = aiohttp.TCPConnector(ssl=access.tls(), limit=16)
    return aiohttp.ClientSession(connector=connector, headers=headers, trace_configs=[trace], **options)
