"""Buckets of the s3 door and what is in them.

Source: Amazon S3 API Reference: ListObjectsV2, ListObjects, ListBuckets, HeadBucket, CreateBucket,
DeleteBucket.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from doma.auth.model import Verb
from doma.core.errors import AlreadyExists, BadRequest, Conflict, Forbidden, NotFound
from doma.doors.s3_call import Call, Place
from doma.doors.s3_objects import key_text
from doma.doors.s3_walk import Found, walk
from doma.doors.s3_xml import NAMESPACE, element, instant, tag

MOST = 1000
"""Keys of one answer."""

_EMPTY = '"d41d8cd98f00b204e9800998ecf8427e"'


@dataclass(frozen=True, slots=True)
class _Page:
    keys: Sequence[Found]
    prefixes: Sequence[str]
    last: str
    """The greatest key or prefix of this page; empty: nothing more follows."""


async def objects(call: Call) -> None:
    """ListObjectsV2, and ListObjects of old."""
    query, new = call.query, call.query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    most = _number(query.get("max-keys", str(MOST)))
    encoding = query.get("encoding-type", "")
    if encoding not in {"", "url"}:
        raise BadRequest("encoding-type: only url is known", s3="InvalidArgument")
    token = query.get("continuation-token", "")
    after = query.get("start-after", "") if new else query.get("marker", "")
    if token:
        after = _read(token)
    folder = Place(call.place("").endpoint, call.place(prefix[: prefix.rfind("/") + 1]).path, True)
    call.allow(Verb.READ, folder)
    await must_exist(call)
    page = await _page(call, prefix, delimiter, after, most)

    def shown(key: str) -> str:
        return key_text(key, encoding)

    head = [("Name", call.bucket), ("Prefix", shown(prefix)), ("MaxKeys", str(most))]
    if delimiter:
        head.append(("Delimiter", shown(delimiter)))
    if encoding:
        head.append(("EncodingType", encoding))
    head.append(("IsTruncated", str(bool(page.last)).lower()))
    if new:
        head.append(("KeyCount", str(len(page.keys) + len(page.prefixes))))
        head += [
            (n, v)
            for n, v in (("ContinuationToken", token), ("StartAfter", shown(query.get("start-after", ""))))
            if v
        ]
        if page.last:
            head.append(("NextContinuationToken", _written(page.last)))
    else:
        head.append(("Marker", shown(after)))
        if page.last:
            head.append(("NextMarker", shown(page.last)))
    body = "".join(tag(n, v) for n, v in head) + "".join(
        _entry(found, shown(found.key)) for found in page.keys
    )
    body += "".join(element("CommonPrefixes", [("Prefix", shown(one))]) for one in page.prefixes)
    await call.say(f'<ListBucketResult xmlns="{NAMESPACE}">{body}</ListBucketResult>')


async def _page(call: Call, prefix: str, delimiter: str, after: str, most: int) -> _Page:
    place, walks = call.place(""), call.door.walks
    keys: list[Found] = []
    prefixes: dict[str, None] = {}
    last = ""
    if not most:
        return _Page((), (), "")
    name = place.endpoint.name, place.path, prefix, delimiter
    found: Found | None
    if kept := walks.take((*name, after)):
        found, walking = kept
    else:
        base = place.path.rstrip("/")
        walking = walk(place.endpoint.store, base, prefix, after, deep=delimiter != "/")
        found = await anext(walking, None)
    while found is not None:
        at = found.key.find(delimiter, len(prefix)) if delimiter else -1
        shared = found.key[: at + len(delimiter)] if at >= 0 else ""
        if not (shared and (shared in prefixes or shared <= after)):
            if len(keys) + len(prefixes) >= most:
                await walks.keep((*name, last), found, walking)
                return _Page(keys, list(prefixes), last)
            if shared:
                prefixes[shared] = None
            else:
                keys.append(found)
            last = shared or found.key
        found = await anext(walking, None)
    return _Page(keys, list(prefixes), "")


def _entry(found: Found, key: str) -> str:
    stat = found.stat
    version = _EMPTY if stat.is_dir else f'"{stat.version}"'
    return element(
        "Contents",
        [
            ("Key", key),
            ("LastModified", instant(stat.modified)),
            ("ETag", version),
            ("Size", str(stat.size)),
            ("StorageClass", "STANDARD"),
        ],
    )


async def must_exist(call: Call) -> None:
    """Raise NotFound, as NoSuchBucket, unless the bucket is there."""
    place = call.place("")
    try:
        stat = await place.endpoint.store.stat(place.path)
    except NotFound as e:
        raise _no_bucket(call) from e
    if not stat.is_dir:
        raise _no_bucket(call)


async def head(call: Call) -> None:
    """HeadBucket."""
    call.allow(Verb.STAT, call.place(""))
    await must_exist(call)
    await call.answer(200, {"x-amz-bucket-region": "us-east-1"})


async def location(call: Call) -> None:
    """GetBucketLocation: the region that needs no name."""
    call.allow(Verb.STAT, call.place(""))
    await must_exist(call)
    await call.say(f'<LocationConstraint xmlns="{NAMESPACE}"/>')


async def versioning(call: Call) -> None:
    """GetBucketVersioning: never switched on."""
    call.allow(Verb.STAT, call.place(""))
    await call.say(f'<VersioningConfiguration xmlns="{NAMESPACE}"/>')


async def buckets(call: Call) -> None:
    """ListBuckets: the key's endpoint, and the top directory that its prefix lies in."""
    right = call.right
    names = [right.endpoint]
    first = right.prefix[1:].partition("/")[0]
    if first and first not in call.door.site.endpoints:
        names.append(first)
    made = instant(0.0)
    listed = "".join(element("Bucket", [("Name", name), ("CreationDate", made)]) for name in sorted(names))
    owner = element("Owner", [("ID", right.subject), ("DisplayName", right.subject)])
    text = f"{owner}<Buckets>{listed}</Buckets>"
    await call.say(f'<ListAllMyBucketsResult xmlns="{NAMESPACE}">{text}</ListAllMyBucketsResult>')


async def make(call: Call) -> None:
    """CreateBucket: a top-level directory of the key's endpoint."""
    place = call.place("")
    if place.path == "/":
        raise AlreadyExists(f"/{call.bucket}: is an endpoint of yours", s3="BucketAlreadyOwnedByYou")
    call.allow_change(Verb.CREATE, place)
    await call.body().whole(64 << 10)
    try:
        await place.endpoint.store.make_dir(place.path)
    except AlreadyExists as e:
        raise AlreadyExists(f"/{call.bucket}: is there already", s3="BucketAlreadyOwnedByYou") from e
    call.tell("directory.made", place)
    await call.answer(200, {"Location": f"/{call.bucket}"})


async def remove(call: Call) -> None:
    """DeleteBucket: only an empty one, and never an endpoint or the top of an issuer's area."""
    place = call.place("")
    call.allow_change(Verb.MODIFY, place)
    if place.path == "/" or place.path in place.endpoint.gate.areas:
        raise Forbidden(f"/{call.bucket}: is the top of an endpoint or of an area; nobody removes it")
    await must_exist(call)
    try:
        await place.endpoint.store.delete(place.path)
    except Conflict as e:
        raise Conflict(f"/{call.bucket}: is not empty; delete what is in it", s3="BucketNotEmpty") from e
    call.tell("file.deleted", place, is_dir=True)
    await call.answer(204)


def _no_bucket(call: Call) -> NotFound:
    return NotFound(f"/{call.bucket}: there is no such bucket", s3="NoSuchBucket")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest("max-keys: must be a number", s3="InvalidArgument")
    return min(int(text), MOST)


def _written(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _read(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as e:
        raise BadRequest("continuation-token: is none of ours", s3="InvalidArgument") from e
