"""What a COPY between two servers asks for: its headers as one value.

Source: rules W51-W60 of the storage contract.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from doma.auth.redact import blanked
from doma.core.checksum import COMPUTABLE, read_digests
from doma.core.errors import BadRequest, DomaError
from doma.core.url import https, origin_of, redacted

STREAMS = 8
"""Connections of one transfer at most."""

_TRANSFER = "transferheader"
_OURS = frozenset(
    {
        "accept-encoding", "connection", "content-encoding", "content-length", "content-range", "expect",
        "host", "if-match", "if-range", "keep-alive", "proxy-connection", "range", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Fields of the other request that only we may write: they say where it ends and which bytes come."""
_DIGESTS = {"digest", "repr-digest", "oc-checksum"}
_SIGNED = {"x-amz-signature", "signature", "x-goog-signature", "sig"}
_INFO = 1024
"""Bytes of ``ClientInfo`` that are kept."""


@dataclass(frozen=True, slots=True)
class Order:
    """One transfer."""

    remote: str
    """URL of the passive side, ``http`` or ``https``."""
    push: bool
    """Whether the bytes go there; else they come from there."""
    fields: Mapping[str, str] = field(repr=False)
    """Sent with every request to the passive side; secrets, never logged."""
    overwrite: bool = True
    verify: bool = True
    """Whether somebody must state a checksum that fits."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """What the client says about the content: algorithm to hex."""
    streams: int = 1
    info: str = ""
    """``ClientInfo``: the job and file ids of whoever ordered this."""
    scitag: int = 0
    """Experiment and activity of the flow; 0: not said."""
    size: int | None = None
    min_rate: int = 0
    """Bytes per second."""

    @property
    def shown(self) -> str:
        """The passive side's URL as it may be told: no query at all, signatures hide in it."""
        return redacted(self.remote).partition("?")[0]

    @property
    def host(self) -> str:
        """``https://host[:port]`` of the passive side."""
        return str(origin_of(self.remote))

    def located(self, error: DomaError) -> DomaError:
        """The error, its message naming the passive side's path too: operators see this line alone (W68)."""
        if self.shown not in error.message:
            host, side = re.escape(self.host), "destination" if self.push else "source"
            text, found = re.subn(rf"{host}(?=:? )", lambda _: self.shown, error.message, count=1)
            error.message = text if found else f"{text}; the {side} is {self.shown}"
        return error

    @property
    def signed(self) -> bool:
        """Whether the URL carries a signature, which holds for one method only."""
        return not _SIGNED.isdisjoint(name.lower() for name in parse_qs(urlsplit(self.remote).query))

    @property
    def secret(self) -> str | None:
        """The token for the passive side, to strike it out of what that side says."""
        words = self.fields.get("Authorization", "").split()
        return words[-1] if words else None


def order_of(shown: str, headers: Mapping[str, str], *, here: bool = False) -> Order:
    """Read the headers of a COPY.

    Args:
        shown: The request's path, for messages.
        headers: Names in lower case.
        here: The other side is ours too, so its URL is not judged here.

    Raises:
        BadRequest: they contradict each other, or ask for what only we may decide.
    """
    source, destination = headers.get("source"), headers.get("destination")
    if (source is None) == (destination is None):
        raise BadRequest(f"{shown}: COPY needs exactly one of the headers Source and Destination")
    fields = _carried(shown, headers)
    _credential(shown, headers, fields)
    verify = headers.get("requirechecksumverification", "true").strip().lower()
    if verify not in {"true", "false"}:
        raise BadRequest(f"{shown}: RequireChecksumVerification must be true or false")
    overwrite = headers.get("overwrite", "T").strip().upper()
    if overwrite not in {"T", "F"}:
        raise BadRequest(f"{shown}: Overwrite must be T or F, not {overwrite[:20]!r}")
    stated = read_digests(((n, v) for n, v in headers.items() if n in _DIGESTS), strict=True)
    tag = _number(headers.get("scitag"), _number(headers.get(_TRANSFER + "scitag"), 0))
    return Order(
        (source or destination or "") if here else _url(shown, source or destination or ""),
        source is None,
        fields,
        overwrite=overwrite == "T",
        verify=verify == "true",
        digests={name: value for name, value in stated.items() if name in COMPUTABLE},
        streams=max(1, min(STREAMS, _number(headers.get("x-number-of-streams"), 1))),
        info=_info(headers.get("clientinfo", "")),
        scitag=tag if 65 <= tag <= 65535 else 0,
        size=_number(headers.get("x-expected-size"), -1) if "x-expected-size" in headers else None,
        min_rate=_number(headers.get("x-min-throughput"), 0),
    )


def _url(shown: str, text: str) -> str:
    url = https(text.strip())
    if not url.isascii() or any(c <= " " for c in url) or "#" in url:
        raise BadRequest(f"{shown}: the other URL must be percent-encoded and without a fragment")
    origin = origin_of(url)
    if origin.scheme not in {"http", "https"}:
        raise BadRequest(f"{shown}: the other side must be reached by https, not {origin.scheme}")
    return url


def _info(text: str) -> str:
    """What the client says of itself, fit for logs and events: one line, no credential in it."""
    return blanked("".join(filter(str.isprintable, text)))[:_INFO]  # cut last: half a token is no known one


def _carried(shown: str, headers: Mapping[str, str]) -> dict[str, str]:
    """What goes to the passive side: ``TransferHeader*``, and who ordered this."""
    fields = {}
    for name, value in headers.items():
        if name.startswith(_TRANSFER) and (inner := name.removeprefix(_TRANSFER)):
            if inner in _OURS:
                raise BadRequest(
                    f"{shown}: the header TransferHeader{inner.title()} is refused; leave it out"
                )
            fields[inner.title()] = value
    if "clientinfo" in headers:
        fields.setdefault("Clientinfo", headers["clientinfo"][:_INFO])
    if "traceparent" in headers:
        fields.setdefault("Traceparent", headers["traceparent"][:100])
    if "scitag" in headers:
        fields.setdefault("Scitag", headers["scitag"][:20])
    return fields


def _credential(shown: str, headers: Mapping[str, str], fields: Mapping[str, str]) -> None:
    kind = headers.get("credential", "none").strip().lower()
    if kind != "none" and "Authorization" not in fields:
        raise BadRequest(
            f"{shown}: credential delegation ({kind[:20]!r}) is not offered; send TransferHeaderAuthorization"
        )


def _number(text: str | None, default: int) -> int:
    """A number of at most 18 digits; anything else is never an error."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else default
