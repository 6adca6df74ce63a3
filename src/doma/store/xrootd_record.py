"""What we keep with a file at a root:// server: its checksums, in one extended attribute.

The record names the version that it was made for; about any other it says nothing. A server without
attributes just knows no checksums by heart.

Source: xrootd's ``XrdXrootdXeqFAttr.cc``; rule W41 of the storage contract.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from doma.core.checksum import ALGORITHMS, parse_checksum
from doma.core.errors import BadRequest, DomaError
from doma.net.xroot_client import Plea, XrootClient
from doma.net.xroot_errors import BAD_REQUEST, NO_ATTRIBUTE, UNSUPPORTED
from doma.net.xroot_frames import (
    P_FATTR,
    Attribute,
    Code,
    attribute_answer,
    attribute_request,
)
from doma.net.xroot_text import with_cgi

NAME = "doma"
MOST = 4096
"""Bytes of a record."""


@dataclass(frozen=True, slots=True)
class Record:
    """Checksums, and the version of the content that they belong to."""

    of: str = ""
    sums: Mapping[str, str] = field(default_factory=dict)


class Records:
    """The records of one deployment.

    Args:
        client: To ask with.
    """

    def __init__(self, client: XrootClient) -> None:
        self._client = client
        self._offered = True

    async def get(self, path: str, token: str | None) -> Record:
        """What is kept with a path at the server; an empty one if nothing is or can be."""
        code, value = await self._ask(path, token, Attribute.GET)
        return _read(value) if not code else Record()

    async def put(self, path: str, token: str | None, record: Record) -> None:
        """Keep a record, if the server can."""
        value = json.dumps({"of": record.of, "sums": dict(record.sums)}, separators=(",", ":"))
        await self._ask(path, token, Attribute.SET, value.encode())

    async def _ask(
        self, path: str, token: str | None, what: Attribute, value: bytes | None = None
    ) -> tuple[int, bytes]:
        """Error code and value. A record is a help: where it cannot be had, life goes on without."""
        if not self._offered:
            return UNSUPPORTED, b""
        body = P_FATTR.pack(bytes(4), what, 1, 0)
        plea = Plea(
            f"{path}: attribute",
            Code.FATTR,
            lambda _, more: (body, attribute_request(with_cgi(path, more), NAME, value)),
        )
        try:
            told, _ = await self._client.ask(plea, token)
            code, found = attribute_answer(told, NAME)
        except DomaError as e:
            code, found = e.detail.get("xrootd", NO_ATTRIBUTE), b""
        self._offered = code not in {UNSUPPORTED, BAD_REQUEST}
        return code, found


def _read(value: bytes) -> Record:
    """A record as anybody may have written it."""
    try:
        record = json.loads(value[:MOST])
        of, sums = record["of"], record["sums"]
        found = {name: parse_checksum(name, sums[name]) for name in ALGORITHMS if name in sums}
    except (ValueError, KeyError, TypeError, AttributeError, BadRequest, RecursionError):
        return Record()
    return Record(of, found) if isinstance(of, str) else Record()
