"""One caller's way to a scan service: calls, streams and errors, nothing of datasets."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from doma.auth.bearer import discover
from doma.scan import jsontext
from doma.scan.flighterror import from_flight

Token = str | Callable[[], str] | None


class Remote:
    """The way to a scan service: address, credential, trust. Connects when it is first used."""

    def __init__(
        self, url: str, token: Token = None, ca: str | os.PathLike[str] | bytes | None = None
    ) -> None:
        self.url = url
        self._token = token
        self._ca = ca
        self._client: Any = None
        self.last: str | None = None
        """Number of the scan planned last."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.url, self._token, self._ca)

    def info(self, query: Mapping[str, Any]) -> Any:
        """FlightInfo of a query. Raises the service's error as the same class."""
        command = jsontext.write(query).encode()
        found = self._call(lambda c, o: c.get_flight_info(fl.FlightDescriptor.for_command(command), o))
        self.last = json.loads(bytes(found.app_metadata))["scan"]
        return found

    def stream(self, endpoints: Sequence[Any]) -> Iterator[pa.RecordBatch]:
        """The batches of endpoints in order; leaving the iterator stops the scan."""
        for endpoint in endpoints:
            reader = self._call(partial(_get, endpoint.ticket))
            try:
                while True:
                    try:
                        chunk = reader.read_chunk()
                    except StopIteration:
                        break
                    yield chunk.data
            except (fl.FlightError, pa.ArrowException, OSError) as e:
                raise from_flight(e) from e
            finally:
                reader.cancel()

    def act(self, kind: str, body: bytes = b"") -> Any:
        """The JSON answer of an action."""
        results = self._call(lambda c, o: list(c.do_action(fl.Action(kind, body), o)))
        return jsontext.read(results[0].body.to_pybytes())

    def _call(self, work: Callable[[Any, Any], Any]) -> Any:
        try:
            if self._client is None:
                ca = self._ca
                if isinstance(ca, os.PathLike) or (isinstance(ca, str) and "-----BEGIN" not in ca):
                    ca = Path(ca).read_bytes()
                self._client = (
                    fl.FlightClient(self.url, tls_root_certs=ca) if ca else fl.FlightClient(self.url)
                )
            token = self._token() if callable(self._token) else self._token
            if token is None:  # as every WLCG client does: environment, then the user's token file
                token = discover(os.environ, os.geteuid())
            headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
            return work(self._client, fl.FlightCallOptions(headers=headers))
        except (fl.FlightError, pa.ArrowException) as e:
            raise from_flight(e) from e


def _get(ticket: Any, client: Any, options: Any) -> Any:
    return client.do_get(ticket, options)
