"""Draws ``architecture.svg``: who asks, doors, services, endpoints, database. Run it when the house changes.

A grid of five columns; a box spans some of them and holds a bold line and plain lines below it.
"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, MARGIN, GAP, COLUMNS = 1100, 130, 20, 16, 5
LINE = 19
STEP = (WIDTH - LEFT - MARGIN + GAP) / COLUMNS
BLUE, GREEN, YELLOW, RED, GREY = "#e6edf7", "#dcefe2", "#fdf1d8", "#f7e4e2", "#eeeeee"

LINES, SMALL = 'stroke="#999"', 'font-size="13"'
HEAD = 'stroke-width="1.5" marker-end="url(#a)"'

Box = tuple[float, float, str, str, list[str]]
"""First column, columns wide, colour, bold line, plain lines."""

OUTBOX = "events are rows of an outbox; a relay passes them to the bus, and so to /events"

ROWS: list[tuple[int, int, str, list[Box]]] = [
    (
        20,
        54,
        "who asks",
        [
            (0, 1, BLUE, "uproot, coffea", ["ranged reads"]),
            (1, 1, BLUE, "curl, WebDAV", ["files and folders"]),
            (2, 1, BLUE, "func_adl, ServiceX", ["columns"]),
            (3, 1, BLUE, "browser, Prometheus", ["status, events, numbers"]),
            (4, 1, BLUE, "pyarrow, duckdb", ["Arrow"]),
        ],
    ),
    (
        114,
        54,
        "two ports",
        [
            (0, 4, GREEN, "listener: HTTP and HTTPS on one port", ["the first byte decides; own HTTP/1.1"]),
            (4, 1, GREEN, "Arrow Flight", ["gRPC over TLS"]),
        ],
    ),
    (
        208,
        76,
        "doors|and services|(each verifies|the token)",
        [
            (0, 2, YELLOW, "https door", ["hot reads in the read callback", "WebDAV over the ASGI bridge"]),
            (2, 1, YELLOW, "columns", ["REST, plan, leases", "worker processes"]),
            (3, 1, YELLOW, "web, issuer", ["/, /metrics, /events", "tokens of this home"]),
            (4, 1, YELLOW, "scan", ["cuts and projects", "beside the files"]),
        ],
    ),
    (
        334,
        60,
        "endpoints:|a store|under a policy",
        [
            (0.1, 1.1, RED, "site", ["file:///…, writable"]),
            (1.35, 1.25, RED, "cache", ["cache+https://…/site"]),
            (2.65, 1.15, RED, "results", ["narrow tokens only"]),
            (3.85, 1.05, RED, "data, others", ["file, https, memory"]),
        ],
    ),
    (
        444,
        54,
        "under|all of it",
        [(0, 5, GREY, "database: SQLite or PostgreSQL", [OUTBOX])],
    ),
]  # fmt: skip

FRAME = (324, 80)
"""Top and height of the frame around the endpoints."""

ARROWS = [(x, 74, 114) for x in (0.5, 1.5, 2.5, 3.5, 4.5)]
ARROWS += [(1, 168, 208), (2.5, 168, 208), (3.5, 168, 208), (4.5, 168, 208)]
ARROWS += [(1, 284, 324), (2.5, 284, 324), (4.5, 284, 324), (2.5, 404, 444)]
"""Column (fractions allowed) and the heights between which an arrow runs down."""


def place(column: float) -> float:
    """The x coordinate of a place in the grid."""
    return LEFT + column * STEP - GAP / 2


def box(
    x: float, y: float, width: float, height: float, colour: str, title: str, lines: list[str]
) -> list[str]:
    """A rounded box with its text in the middle."""
    middle, first = x + width / 2, y + height / 2 - LINE * len(lines) / 2 + 5
    out = [
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="7" fill="{colour}" {LINES}/>',
        f'<text x="{middle:.1f}" y="{first:.1f}" font-weight="bold">{escape(title)}</text>',
    ]
    for k, line in enumerate(lines, 1):
        y_line = first + k * LINE
        out.append(f'<text x="{middle:.1f}" y="{y_line:.1f}" {SMALL} fill="#333">{escape(line)}</text>')
    return out


def main() -> None:
    """Write the picture beside this file."""
    bottom = ROWS[-1][0] + ROWS[-1][1] + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" text-anchor="middle"'
        ' font-family="DejaVu Sans, Verdana, sans-serif" font-size="14">',
        '<defs><marker id="a" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0 0 L9 4 L0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{bottom}" fill="white"/>',
    ]
    top, high = FRAME
    out.append(
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - MARGIN}" height="{high}" rx="9"'
        f' fill="none" {LINES} stroke-dasharray="5 4"/>'
    )
    for y, height, title, boxes in ROWS:
        words = title.split("|")
        first = y + height / 2 - 17 * (len(words) - 1) / 2 + 5
        for k, word in enumerate(words):
            here = f'x="{MARGIN}" y="{first + 17 * k:.1f}" text-anchor="start"'
            out.append(f'<text {here} {SMALL} fill="#555">{word}</text>')
        for column, span, colour, bold, lines in boxes:
            x = LEFT + column * STEP
            out += box(x, y, span * STEP - GAP, height, colour, bold, lines)
    for column, top, end in ARROWS:
        out.append(f'<path d="M{place(column):.1f} {top + 2} V{end - 2}" stroke="#666" {HEAD}/>')
    # A miss: the cache asks its origin with the caller's own token.
    right, left, y = LEFT + 1.35 * STEP, LEFT + 1.2 * STEP - GAP, 372
    out.append(
        f'<path d="M{right:.1f} {y} H{left:.1f}" stroke="#b33" {HEAD}/>'
        f'<text x="{(right + left) / 2:.1f}" y="{y - 8}" font-size="12" fill="#b33">miss</text>'
    )
    out.append("</svg>")
    Path(__file__).with_name("architecture.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
