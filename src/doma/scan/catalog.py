"""Which files a dataset name stands for, and one schema over all of them.

Source: scan.md §3 (missing columns, widening between files).
"""

import fnmatch
import logging
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.types as pt

from doma.auth.gate import Gate
from doma.auth.model import Identity, Verb
from doma.core.errors import BadPath, BadQuery, Conflict, DomaError, LimitExceeded, NotFound
from doma.core.paths import checked
from doma.scan.opener import Opener
from doma.scan.plan import FileRef

log = logging.getLogger(__name__)

MAX_FILES = 1000
MAX_LISTED = 10_000
SUFFIXES = (".parquet", ".root")
_MAGIC = frozenset("*?[")


class Catalog:
    """The files behind dataset names, as far as an identity may read them.

    Args:
        openers: Endpoint name to its files.
        gates: Endpoint name to its policy.
    """

    def __init__(self, openers: Mapping[str, Opener], gates: Mapping[str, Gate]) -> None:
        self.openers = openers
        self.gates = gates

    def find(self, dataset: str, identity: Identity | None) -> list[FileRef]:
        """The files of a dataset, sorted by name.

        Raises:
            NotFound: no endpoint, no file. Unauthenticated, Forbidden. LimitExceeded: too many files.
        """
        endpoint, path = self.split(dataset)
        gate, opener = self.gates[endpoint], self.openers[endpoint]
        if not _MAGIC & set(path):
            gate.decide(identity, Verb.READ, path)
            stat = opener.stat(path)
            if stat.is_dir:
                raise Conflict(f"{dataset}: is a directory; name its files, for example {dataset}/*.parquet")
            return [FileRef(endpoint, path, stat.version)]
        found = self._glob(opener, endpoint, path)
        allowed = [ref for ref in found if gate.may(identity, Verb.READ, ref.path)]
        if not allowed:
            # Nothing is told about names that the caller may not read.
            gate.decide(identity, Verb.READ, _fixed(path))
            raise NotFound(f"{dataset}: no file matches; check the pattern")
        if len(allowed) > MAX_FILES:
            raise LimitExceeded(f"{dataset}: {len(allowed)} files match, the limit is {MAX_FILES}; narrow it")
        return sorted(allowed, key=lambda ref: ref.path)

    def split(self, dataset: str) -> tuple[str, str]:
        """Endpoint name and canonical path of a dataset name."""
        if not dataset.startswith("/"):
            raise NotFound(f"{dataset[:200]}: no dataset of that name; a file is /<endpoint>/<path>")
        canonical = checked(dataset)
        endpoint, _, rest = canonical[1:].partition("/")
        if endpoint not in self.openers:
            known = ", ".join(sorted(self.openers)) or "none"
            raise NotFound(f"{canonical}: there is no endpoint {endpoint!r} here; endpoints: {known}")
        if not rest:
            raise BadPath(f"{canonical}: a file of the endpoint is missing; write /{endpoint}/<path>")
        return endpoint, "/" + rest

    def listed(self, identity: Identity | None) -> list[str]:
        """Scannable files at the top of every endpoint that the identity may read."""
        out: list[str] = []
        for endpoint, opener in sorted(self.openers.items()):
            gate = self.gates[endpoint]
            try:
                children = opener.list("/")[:MAX_LISTED]
            except DomaError as e:  # an endpoint that cannot list, or is away: the others are not blamed
                log.info("endpoint %s is not listed: %s", endpoint, e.message)
                continue
            out.extend(
                f"/{endpoint}{stat.path}"
                for stat in children
                if stat.path.endswith(SUFFIXES)
                and not stat.is_dir
                and gate.may(identity, Verb.READ, stat.path)
            )
        return out

    def _glob(self, opener: Opener, endpoint: str, path: str) -> list[FileRef]:
        places = ["/"]
        seen = 0
        parts = path[1:].split("/")
        for depth, part in enumerate(parts):
            if not _MAGIC & set(part):
                places = [f"{place.rstrip('/')}/{part}" for place in places]
                continue
            found = []
            for place in places:
                try:
                    children = opener.list(place)
                except (NotFound, Conflict):
                    continue
                seen += len(children)
                if seen > MAX_LISTED:
                    raise LimitExceeded(
                        f"/{endpoint}{path}: more than {MAX_LISTED} names to look at; narrow it"
                    )
                last = depth == len(parts) - 1
                for child in children:
                    name = child.path.rpartition("/")[2]
                    if fnmatch.fnmatchcase(name, part) and child.is_dir != last:
                        found.append(child)
            if depth == len(parts) - 1:
                return [FileRef(endpoint, child.path, child.version) for child in found]
            places = [child.path for child in found]
        out = []
        for place in places:  # the last component was plain
            try:
                stat = opener.stat(place)
            except NotFound:
                continue
            if not stat.is_dir:
                out.append(FileRef(endpoint, place, stat.version))
        return out


def unified(schemas: list[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema over files: columns in order of first appearance, integers and floats widened.

    Raises:
        BadQuery: a column has types that do not widen; names both files.

    >>> unified([("a", pa.schema({"x": pa.int32()})), ("b", pa.schema({"x": pa.int64()}))]).field("x").type
    DataType(int64)
    """
    if len(schemas) == 1:
        return schemas[0][1]
    kinds: dict[str, tuple[pa.DataType, str]] = {}
    for name, schema in schemas:
        for field in schema:
            if field.name not in kinds:
                kinds[field.name] = field.type, name
                continue
            kind, first = kinds[field.name]
            wider = _wider(kind, field.type)
            if wider is None:
                raise BadQuery(
                    f"column {field.name!r}: {kind} in {first} but {field.type} in {name}; scan them apart",
                    column=field.name,
                    reason="type-mismatch",
                )
            kinds[field.name] = wider, name if wider != kind else first
    return pa.schema([pa.field(name, kind) for name, (kind, _) in kinds.items()])


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a == b or pt.is_null(b):
        return a
    if pt.is_null(a):
        return b
    both = {a, b}
    if both == {pa.float32(), pa.float64()}:
        return pa.float64()
    if pt.is_integer(a) and pt.is_integer(b):
        if pt.is_unsigned_integer(a) == pt.is_unsigned_integer(b):
            return max(a, b, key=lambda t: int(t.bit_width))
        unsigned, signed = (a, b) if pt.is_unsigned_integer(a) else (b, a)
        return signed if signed.bit_width > unsigned.bit_width else None
    if (pt.is_list(a) or pt.is_large_list(a)) and (pt.is_list(b) or pt.is_large_list(b)):
        inner = _wider(a.value_type, b.value_type)
        if inner is None:
            return None
        return pa.list_(inner) if pt.is_list(a) and pt.is_list(b) else pa.large_list(inner)
    return pa.large_string() if both == {pa.string(), pa.large_string()} else None


def _fixed(path: str) -> str:
    """The directory above the first component with a pattern."""
    kept = []
    for part in path[1:].split("/"):
        if _MAGIC & set(part):
            break
        kept.append(part)
    return "/" + "/".join(kept)
