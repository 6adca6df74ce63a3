"""PUT of one file: decide, prepare, take the bytes, publish. Both roads drive it.

Everything that can refuse the request does so before the first byte is asked for. Nothing is visible
before :meth:`Landing.commit`, and after :meth:`Landing.abort` nothing is left.

Source: rules W5, W6, W30, W40-W46 of the storage contract; §5 of the token contract.
"""

import re
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from doma.auth.model import Identity, Verb
from doma.core.checksum import digest_header, read_digests, repr_digest_header
from doma.core.errors import BadRequest, NotAllowed, NotFound, WrongSize
from doma.core.events import Event
from doma.core.paths import normalise
from doma.core.ranges import check_write
from doma.doors.endpoint import Site
from doma.store.protocol import Buffer, CanFeed, CanTag, Stat, Upload

Raw = Sequence[tuple[bytes, bytes]]


class Terms(NamedTuple):
    """What must hold when the file is published."""

    checksums: Mapping[str, str] | None
    if_version: str | None
    if_absent: bool


class Landing:
    """One upload.

    Args:
        site: The endpoints.
        target: Path as on the wire, without query.
        query: What followed the ``?``.
        raw: The request's headers, names in lower case.
        length: ``Content-Length``; None for a chunked body.
        identity: Who asks, where another door knows already; None: whoever the token says.
    """

    __slots__ = (
        "_endpoint",
        "_existed",
        "_fed",
        "_feeder",
        "_identity",
        "_length",
        "_named",
        "_path",
        "_query",
        "_raw",
        "_shown",
        "_site",
        "_target",
        "_upload",
        "where",
    )

    def __init__(
        self,
        site: Site,
        target: str,
        query: bytes,
        raw: Raw,
        length: int | None,
        identity: Identity | None = None,
    ) -> None:
        self._site, self._target, self._query, self._raw, self._length = site, target, query, raw, length
        self._upload: Upload | None = None
        self._feeder: CanFeed | None = None
        self._existed = False
        self._fed = 0
        self._identity = identity
        self._named = ""
        self.where = ""
        """Name of the endpoint, once it is found."""

    @property
    def received(self) -> int:
        """Bytes that were taken so far."""
        return self._fed

    async def open(self) -> None:
        """Authorise, check the conditions, begin to write.

        Raises:
            DomaError: the request is refused; the class says with which status.
        """
        self._shown = normalise(self._target)
        self._endpoint, self._path = self._site.find(self._shown)
        self.where = self._endpoint.name
        headers = text_headers(self._raw)
        if self._identity is None:
            query = self._query.decode("latin-1")
            self._identity = await self._site.identify(headers.get("authorization"), query)
        endpoint, path = self._endpoint, self._path
        gate, who = endpoint.gate, self._identity
        if not gate.may(who, Verb.MODIFY, path):
            gate.decide(who, Verb.CREATE, path)
        if not endpoint.writable:
            raise NotAllowed(f"{self._shown}: PUT is not possible: {endpoint.name!r} is read-only")
        if path == "/" or self._target.endswith("/"):
            raise NotAllowed(f"{self._shown}: a file's path does not end in '/'; MKCOL makes directories")
        self._named = upload_id(headers.get("x-upload-id", ""))
        stated = read_digests(((n.decode("latin-1"), v.decode("latin-1")) for n, v in self._raw), strict=True)
        there = await self._there()
        if there is not None:
            gate.decide(who, Verb.MODIFY, path)
        version = there.version if there is not None else None
        check_write(headers, self._shown, version, there.modified if there is not None else None)
        match = headers.get("if-match", "").strip()
        self._existed = there is not None
        # A token that may only create must not replace what lands there meanwhile.
        absent = headers.get("if-none-match", "").strip() == "*" or not gate.may(who, Verb.MODIFY, path)
        terms = Terms(stated or None, None if not match else "*" if match == "*" else version, absent)
        upload = self._upload = await self._begin(headers, terms, there)
        if upload is not None:
            if self._named and isinstance(upload, CanTag):
                upload.tag(self._named)
            self._feeder = upload if _feeds(upload) else None

    async def _begin(self, headers: Mapping[str, str], terms: Terms, there: Stat | None) -> Upload | None:
        """Begin to write."""
        size = self._length
        if size is None and (said := headers.get("x-expected-size", "")).isdecimal() and said.isascii():
            size = int(said[:19])
        return await self._endpoint.store.create(
            self._path,
            size=size,
            checksums=terms.checksums,
            if_version=terms.if_version,
            if_absent=terms.if_absent,
        )

    async def _there(self) -> Stat | None:
        try:
            stat = await self._endpoint.store.stat(self._path)
        except NotFound:
            return None
        if stat.is_dir:
            raise NotAllowed(f"{self._shown}: is a directory; PUT writes files")
        return stat

    def feed(self, data: memoryview) -> bool:
        """Take bytes without waiting, if the store can just now; the view is not kept."""
        if self._feeder is None or not self._feeder.feed(data):
            return False
        self._fed += len(data)
        return True

    async def write(self, data: Buffer) -> None:
        """Take bytes."""
        assert self._upload is not None
        await self._upload.write(data)
        self._fed += len(data)

    async def commit(self) -> tuple[int, list[tuple[str, str]]]:
        """Verify and publish: the status and headers of the answer.

        Raises:
            WrongSize, ChecksumMismatch, PreconditionFailed: nothing was published.
        """
        assert self._upload is not None
        try:
            stat = await self._upload.commit()
        except BaseException:  # a cancellation, too: undone, and raised on
            await self._upload.abort()
            raise
        self._site.emit(landed(self._endpoint.name, self._shown, stat, owner_of(self._identity)))
        return self._said(stat)

    def _said(self, stat: Stat) -> tuple[int, list[tuple[str, str]]]:
        """The answer that tells of the published file."""
        return (204, about(stat)) if self._existed else (201, [("Content-Length", "0"), *about(stat)])

    async def abort(self, reason: str) -> WrongSize:
        """Leave no trace; the error that tells why the body was not whole."""
        if self._upload is not None:
            await self._upload.abort()
        announced = f"{self._length} bytes were announced" if self._length is not None else "it was chunked"
        return WrongSize(f"{self._target}: {reason}; {self._fed} bytes came, {announced}; send it again")


def landed(endpoint: str, shown: str, stat: Stat, owner: str) -> Event:
    """What is told of a file that was published."""
    facts: dict[str, Any] = {"endpoint": endpoint, "size": stat.size}
    if "adler32" in stat.checksums:
        facts["adler32"] = stat.checksums["adler32"]
    return Event("file.landed", shown, facts, owner)


def owner_of(who: Identity | None) -> str:
    """Whom an event concerns."""
    return f"{who.issuer}#{who.subject}" if who is not None else ""


def about(stat: Stat) -> list[tuple[str, str]]:
    """The headers that tell of a published file."""
    headers = [
        ("ETag", f'"{stat.version}"'),
        ("Digest", digest_header(stat.checksums)),
        ("Repr-Digest", repr_digest_header(stat.checksums)),
    ]
    return [(name, value) for name, value in headers if value]


def described(stat: Stat) -> bytes:
    """The same as lines of an answer's head."""
    sums = stat.checksums
    if len(sums) == 1 and (adler := sums.get("adler32")) is not None and len(adler) == 8:
        # What nearly every file has, at a tenth of the cost.
        coded = b2a_base64(bytes.fromhex(adler), newline=False).decode("ascii")
        text = f'ETag: "{stat.version}"\r\nDigest: adler32={adler}\r\nRepr-Digest: adler=:{coded}:\r\n'
    else:
        text = "".join([f"{name}: {value}\r\n" for name, value in about(stat)])
    return text.encode("latin-1")


def _feeds(upload: Upload) -> TypeGuard[CanFeed]:
    """Whether it is a CanFeed, asked once for each class: the question costs as much as a small write."""
    kind = type(upload)
    known = _FEEDS.get(kind)
    if known is None:
        known = _FEEDS[kind] = isinstance(upload, CanFeed)
    return known


_FEEDS: dict[type, bool] = {}


def upload_id(text: str) -> str:
    """The value of ``X-Upload-Id``: up to 128 letters, digits and ``-._:``; empty: none was given.

    Raises:
        BadRequest: it is something else.
    """
    text = text.strip()
    if text and not _ID.fullmatch(text):
        raise BadRequest("X-Upload-Id: send up to 128 letters, digits and any of -._:")
    return text


_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def text_headers(raw: Raw) -> Mapping[str, str]:
    """Headers by name, repeated ones joined by commas.

    >>> text_headers([(b"a", b"1"), (b"a", b"2")])
    {'a': '1, 2'}
    """
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers
