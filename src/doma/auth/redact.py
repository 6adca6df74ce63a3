"""Keeps credentials out of logs, and each message on its line, wherever a record comes from.

Attach :class:`Redactor` to handlers: a logger's own filter does not see the records of its children.

Source: §6 and §11 of the token contract (tokens in query strings kept in access logs).
"""

import logging
import re

BLANK = "***"

_NAMES = (
    r"(?:authz|macaroon|device_code|code_verifier|(?:access|refresh|subject|actor|id)_token"
    r"|client_(?:secret|assertion)|x-(?:amz|goog)-(?:signature|credential|security-token))"
)
_COMMON = r"(?:code|user_code|token|password|ticket|signature|sig)"
"""Names that mean something harmless in most places: blanked in queries and forms only."""
_RULES = (
    # Header fields, as text, as items of a dict or tuple, as bytes: the value ends with the line or quote.
    (
        re.compile(
            r"""((?:proxy-)?authorization|transferheader[\w-]*)(\\?["']?\s*[:=]\s*(?:b(?=["']))?|["']\s*,\s*(?:b(?=["']))?)"""
            r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\r\n"'&]+)""",
            re.IGNORECASE,
        ),
        rf"\1\2{BLANK}",
    ),
    # Query and form parameters.
    (re.compile(rf"\b({_NAMES}=)(?:bearer(?:%20|\+|\s))?[^\s&\"'#,;)\]}}]+", re.IGNORECASE), rf"\1{BLANK}"),
    (re.compile(rf"([?&]{_COMMON}=)[^\s&\"'#,;)\]}}]+", re.IGNORECASE), rf"\1{BLANK}"),
    # JSON.
    (re.compile(rf"""(\\?["']{_NAMES}\\?["']\s*:\s*\\?["'])[^"'\\]*""", re.IGNORECASE), rf"\1{BLANK}"),
    # The scheme, and what looks like a JWT, in any other place.
    (re.compile(r"\b((?:bearer|basic)(?:%20|\+|\s)+)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE), rf"\1{BLANK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"), BLANK),
    # Refresh tokens; macaroons begin with the base64 of "00..location".
    (re.compile(r"\bdoma-rt\.[A-Za-z0-9._-]+|\bMDA[A-Za-z0-9_-]{3}xvY2F0aW9u[A-Za-z0-9_=-]*"), BLANK),
)
_HINT = re.compile(
    r"authorization|transferheader|bearer|basic|authz|token|secret|assertion|code|password|ticket|macaroon"
    r"|signature|credential|sig=|eyJ|doma-rt|MDA",
    re.IGNORECASE,
)


def blanked(text: str) -> str:
    """The text without credentials.

    >>> blanked("GET /a?authz=Bearer%20abc&x=1")
    'GET /a?authz=***&x=1'
    >>> blanked("Authorization: Bearer abc")
    'Authorization: ***'
    """
    if not _HINT.search(text):
        return text
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
"""What ends a line for somebody, or speaks to a terminal."""


def _spelled(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


class Redactor(logging.Filter):
    """Blanks credentials in the message, traceback and stack of every record that passes.

    Control characters in a message are spelled out: a name that a client made up writes no line of its own.
    """

    _formatter = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            # The formatter would fail as well and print the arguments bare.
            record.msg, record.args = f"a log message at {record.pathname}:{record.lineno} does not fit", None
            return True
        clean = _CONTROL.sub(_spelled, blanked(text))
        if clean != text:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            # A formatter takes this text when it is there already.
            record.exc_text = self._formatter.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = blanked(record.exc_text)
        if record.stack_info:
            record.stack_info = blanked(record.stack_info)
        return True
