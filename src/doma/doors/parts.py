"""PUT of a part of a file: the part is appended, and with the last one the file is published.

``Content-Range: bytes a-b/N`` brings bytes, ``bytes */N`` without a body asks how many are there. An upload
belongs to the token's subject, the path and ``X-Upload-Id`` (or, without one, N). A part may begin before
the end of what is there: bytes that come again are compared. ``HEAD`` with ``X-Upload-Id`` tells the offset.

Source: rule W49 of the storage contract; §5 of the token contract; RFC 9110 §14.4, §14.5.
"""

import re
from collections.abc import Mapping
from hashlib import sha256

from doma.auth.model import Identity
from doma.core.errors import BadRequest, Conflict, NotFound, Unsupported, WrongSize
from doma.doors.endpoint import Endpoint, Site
from doma.doors.landing import Landing, Raw, Terms
from doma.store.protocol import Buffer, CanResume, Session, Stat, Upload

_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})", re.ASCII)


def landing(site: Site, target: str, query: bytes, raw: Raw, length: int | None) -> Landing:
    """What takes the body of a PUT; see :class:`Landing` for the arguments."""
    kind = PartLanding if any(name == b"content-range" for name, _ in raw) else Landing
    return kind(site, target, query, raw, length)


async def offset(endpoint: Endpoint, path: str, identity: Identity | None, named: str) -> int:
    """Bytes that an upload of the caller's holds.

    Raises:
        NotFound: the caller has no such upload.
    """
    store = endpoint.store
    found = None
    if isinstance(store, CanResume):
        found = await store.resumable(path, _key(identity, path, named))
    if found is None:
        raise NotFound(f"{path}: there is no such upload of yours; begin it with byte 0")
    return found


def _key(identity: Identity | None, path: str, named: str) -> str:
    who = (identity.issuer, identity.subject) if identity is not None else ("", "")
    return sha256("\0".join((*who, path, named)).encode()).hexdigest()


class PartLanding(Landing):
    """One part."""

    __slots__ = ("_done", "_session", "_skip", "_start", "_stop", "_whole")

    async def open(self) -> None:
        self._session: Session | None = None
        self._done: Stat | None = None
        """What this very upload has published already: its end was lost on the way to the client."""
        self._skip = 0
        await super().open()

    async def _begin(self, headers: Mapping[str, str], terms: Terms, there: Stat | None) -> Upload | None:
        self._read(headers["content-range"].strip())
        if there is not None and self._named and (there.upload, there.size) == (self._named, self._whole):
            self._done = there
            return None
        store, shown = self._endpoint.store, self._shown
        if not isinstance(store, CanResume):
            raise Unsupported(f"{shown}: PUT of a part is not offered here; send the whole file")
        session = await store.resume(
            self._path,
            _key(self._identity, self._path, self._named or str(self._whole)),
            size=self._whole,
            checksums=terms.checksums,
            if_version=terms.if_version,
            if_absent=terms.if_absent,
        )
        here = session.offset
        if self._start > here:
            await (session.pause() if here else session.abort())
            if here == 0 and self._named:
                raise NotFound(f"{shown}: there is no such upload of yours; begin it with byte 0", offset=0)
            raise Conflict(f"{shown}: {here} bytes are here; go on with byte {here}", offset=here)
        self._session = session
        self._skip = max(0, min(here, self._stop) - self._start)
        return session

    def _read(self, text: str) -> None:
        """Understand ``Content-Range``. Raises BadRequest."""
        shown, found = self._shown, _RANGE.fullmatch(text)
        if found is None:
            raise BadRequest(f"{shown}: Content-Range must be 'bytes first-last/size' or 'bytes */size'")
        self._whole = int(found[3])
        self._start, self._stop = (int(found[1]), int(found[2]) + 1) if found[1] else (0, 0)
        expected = self._stop - self._start
        if found[1] and not 0 < expected <= self._whole - self._start:
            raise BadRequest(f"{shown}: Content-Range {found[0]} names no bytes of the file")
        if self._length not in {None, expected}:
            raise BadRequest(
                f"{shown}: Content-Range tells of {expected} bytes, Content-Length of {self._length}"
            )

    def feed(self, data: memoryview) -> bool:
        if self._done is not None:
            self._fed += len(data)
            return True
        if self._skip or self._fed + len(data) > self._stop - self._start:
            return False
        return super().feed(data)

    async def write(self, data: Buffer) -> None:
        assert self._session is not None
        if self._fed + len(data) > self._stop - self._start:
            raise WrongSize(f"{self._shown}: more bytes came than Content-Range says")
        if self._skip:
            again = bytes(memoryview(data)[: self._skip])
            await self._session.check(self._start + self._fed, again)
            self._fed += len(again)
            self._skip -= len(again)
            data = memoryview(data)[len(again) :]
        if len(data):
            await super().write(data)

    async def commit(self) -> tuple[int, list[tuple[str, str]]]:
        if self._done is not None:
            return self._said(self._done)
        session = self._session
        assert session is not None
        if session.offset == self._whole and self._stop - self._start == self._fed:
            return await super().commit()
        await session.pause()
        if self._fed < self._stop - self._start:
            raise WrongSize(
                f"{self._shown}: {self._fed} bytes came, Content-Range tells of {self._stop - self._start};"
                f" go on with byte {session.offset}",
                offset=session.offset,
            )
        return 202, [("X-Upload-Offset", str(session.offset)), ("Content-Length", "0")]

    async def abort(self, reason: str) -> WrongSize:
        """Keep what came; the error that tells how much that is."""
        session, self._upload = self._session, None
        if session is not None:
            await session.pause()
        error = await super().abort(reason)
        error.detail["offset"] = session.offset if session is not None else 0
        return error
