"""Draws ``architecture.svg``: clients, doors, services, stores. Run it after a change of the house."""

from pathlib import Path

W, H = 900, 520
ROWS = [
    (40, "who asks", "#e8eef7", ["uproot · coffea", "davix · curl · gfal2", "func_adl", "pyarrow · polars · duckdb", "doma …"]),
    (150, "doors: one port (HTTP, HTTPS), Flight", "#dcefe2", ["https: WebDAV, ranges", "REST: ServiceX", "Arrow Flight", "SSE /events · /metrics"]),
    (260, "services", "#fdf1d8", ["columns: query → plan → columns", "scan: filters beside the bytes", "issuer · verifier"]),
    (370, "endpoints: a store under a policy", "#f7e1e1", ["site  file://", "cache  cache+https://", "results  file://", "data  read-only"]),
]  # fmt: skip


def main() -> None:
    """Write the picture beside this file."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" font-family="sans-serif" font-size="15">',
        f'<rect width="{W}" height="{H}" fill="white"/>',
    ]
    for y, title, colour, boxes in ROWS:
        out.append(f'<text x="20" y="{y - 8}" fill="#555" font-size="13">{title}</text>')
        width = (W - 40 - 12 * (len(boxes) - 1)) / len(boxes)
        for k, text in enumerate(boxes):
            x = 20 + k * (width + 12)
            out.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="56" rx="8" fill="{colour}" stroke="#888"/>'
            )
            out.append(f'<text x="{x + width / 2:.0f}" y="{y + 33}" text-anchor="middle">{text}</text>')
        if y != ROWS[-1][0]:
            out.append(
                f'<path d="M{W / 2} {y + 60} v22" stroke="#888" stroke-width="2" marker-end="url(#a)"/>'
            )
    out.append('<text x="20" y="460" fill="#555" font-size="13">under all of it</text>')
    out.append('<rect x="20" y="468" width="860" height="40" rx="8" fill="#eee" stroke="#888"/>')
    out.append(
        '<text x="450" y="493" text-anchor="middle">database (SQLite, PostgreSQL): every change is an event row → relay → bus → SSE</text>'
    )
    out.append(
        '<defs><marker id="a" markerWidth="8" markerHeight="8" refX="4" refY="4" orient="auto"><path d="M0 0 L8 4 L0 8z" fill="#888"/></marker></defs></svg>'
    )
    Path(__file__).with_name("architecture.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
