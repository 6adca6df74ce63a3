"""Writes the tables of the manual that come from the code: ``python docs/generate.py [--check]``."""

import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from doma.core.config import Config
from doma.core.errors import DomaError

DOCS = Path(__file__).parent


def configuration() -> str:
    """The table of all keys."""
    lines = [
        "# Configuration",
        "",
        "One TOML file (`doma.toml` in the home, or `--config FILE`), then the environment, which wins:",
        "`cache.size` is `DOMA_CACHE__SIZE`. Unknown keys are errors. `doma config` shows what is in force.",
        "This page is generated from `doma.core.config` by `python docs/generate.py`.",
    ]
    for name, field in Config.model_fields.items():
        lines += ["", f"## `[{name}]`", ""]
        kind = field.annotation
        if name == "endpoints":
            lines += [str(field.description), "", "Each is a table `[endpoints.NAME]`:", ""]
            kind = get_args(kind)[1]
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        lines += [*_keys(kind)]
        for key, sub in kind.model_fields.items():
            for inner in get_args(sub.annotation):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    lines += ["", f"Each of `[[{name}.{key}]]`:", "", *_keys(inner)]
    return "\n".join(lines) + "\n"


def _keys(model: type[BaseModel]) -> list[str]:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_shown(field.default)}`"
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{key}` | {default} | {meaning} |")
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else repr(value).replace("'", '"')


def errors() -> str:
    """The table of the error family."""
    lines = [
        "# Errors",
        "",
        "Every door and service answers `application/problem+json` (RFC 9457) where JSON is accepted, and",
        "one line of text otherwise, with the header `X-Error-Code`. The command prints the same line and",
        "exits with the exit code; the Python clients raise the class. This page is generated from",
        "`doma.core.errors`.",
        "",
        "| code | class | HTTP | exit | retry | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for code, kind in sorted(DomaError.family.items()):
        meaning = (kind.__doc__ or "").strip().splitlines()[0]
        cells = (f"`{code}`", f"`{kind.__name__}`", kind.http, kind.exit, kind.retry, meaning)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the pages, or with ``--check`` say which are out of date."""
    stale = 0
    for name, make in {"configuration.md": configuration, "errors.md": errors}.items():
        page = DOCS / name
        if "--check" not in sys.argv:
            page.write_text(make())
        elif not page.exists() or page.read_text() != make():
            sys.stderr.write(f"docs/{name} is out of date; run 'python docs/generate.py'\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
