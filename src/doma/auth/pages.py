"""The issuer's pages: log in, agree, done. No script, no cookie, nothing from elsewhere.

Without a cookie a browser carries nothing that another site could use in the user's name; each step instead
brings a sealed ticket of the step before, which only that page has.

Source: RFC 8628 §3.3, RFC 6749 §10.12-10.13 (CSRF, clickjacking), CSP Level 3.
"""

import base64
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape

from starlette.responses import HTMLResponse, Response

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:3rem auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.3rem}label{display:block;margin:.8rem 0}input{display:block;width:100%;font:inherit;"
    "padding:.4rem;box-sizing:border-box}button{font:inherit;padding:.5rem 1.2rem;margin:1rem 1rem 0 0}"
    "code{background:#eee;padding:.1rem .3rem}.bad{color:#a00}"
)
_STYLE_HASH = base64.b64encode(sha256(_STYLE.encode()).digest()).decode()


def login(
    vo: str, action: str, *, ticket: str = "", user_code: str | None = None, why: str = "", status: int = 200
) -> Response:
    """Ask for name and password, and for a device's code if ``user_code`` is not None."""
    fields = _hidden(ticket=ticket)
    if user_code is not None:
        fields += (
            '<label>Code that the device shows<input name="user_code" autocomplete="off" required'
            f' value="{escape(user_code)}"></label>'
        )
    fields += (
        '<label>Name<input name="username" autocomplete="username" required></label>'
        '<label>Password<input name="password" type="password" autocomplete="current-password" required>'
        "</label><button>Log in</button>"
    )
    problem = f'<p class="bad">{escape(why)}</p>' if why else ""
    return _page(f"Log in to {vo}", problem + _form(action, fields), status=status)


def consent(
    user: str, client: str, scopes: Sequence[str], action: str, ticket: str, *, code: str = "", back: str = ""
) -> Response:
    """Ask whether a client may act for the user; ``back``: origin that the browser is sent to afterwards."""
    rights = "".join(f"<li><code>{escape(word)}</code></li>" for word in scopes)
    which = f", which shows the code <code>{escape(code)}</code>," if code else ""
    text = (
        f"<p>You are <b>{escape(user)}</b>. The program <b>{escape(client)}</b>{which} asks for:</p>"
        f"<ul>{rights}</ul><p>Agree only if you have started it yourself just now.</p>"
    )
    buttons = "".join(
        f'<button name="decision" value="{word.lower()}">{word}</button>' for word in ("Allow", "Deny")
    )
    return _page("Allow this?", text + _form(action, _hidden(ticket=ticket) + buttons), back=back)


def told(title: str, text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Say something."""
    return _page(title, f"<p>{escape(text)}</p>", status=status, headers=headers)


def _form(action: str, fields: str) -> str:
    return f'<form method="post" action="{escape(action)}">{fields}</form>'


def _hidden(**fields: str) -> str:
    return "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in fields.items()
        if value
    )


def _page(
    title: str, body: str, *, status: int = 200, back: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self' {back}".rstrip()
        + "; frame-ancestors 'none'; base-uri 'none'"
    )
    html = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1>{body}</html>"
    )
    safe = {
        "Content-Security-Policy": policy, "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
    }  # fmt: skip
    return HTMLResponse(html, status, {**safe, **(headers or {})})
