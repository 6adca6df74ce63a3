"""Other people's text in our messages: one line, printable, cut."""


def line_of(text: str, most: int = 200) -> str:
    """The first line with something in it, without what cannot be printed; empty if there is none.

    >>> line_of(chr(10) + " not found" + chr(7) + chr(10) + "more")
    'not found'
    """
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    return "".join(c for c in line[:most] if c.isprintable())


def printed(data: bytes) -> str:
    """What a program printed, without what would command a terminal.

    >>> printed(bytes([27]) + b"[2J done")
    '�[2J done'
    """
    text = data.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def short(text: str, most: int = 80) -> str:
    """Quoted, and cut where it is long.

    >>> short("abcdef", 4)
    "'abc…'"
    """
    return repr(text if len(text) <= most else text[: most - 1] + "…")
