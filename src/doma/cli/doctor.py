"""``doma doctor`` and ``doma config``: what is wrong here and what to do; what is configured."""

import importlib.util
import os
import resource
import shutil
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from doma.app.home import Home, default_home
from doma.app.settings import load
from doma.cli import show
from doma.core.config import Config
from doma.core.errors import ConfigError, DomaError, ServiceUnavailable


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, ``ok``, ``warning`` or ``problem``, and what it found or what to do."""

    check: str
    state: str
    text: str


def doctor(home: Path | None, config: Path | None, json: bool) -> None:
    """Run all checks; exits with 75 if one found a problem."""
    place = Home(home or default_home())
    checks: list[Callable[[], Finding]] = [
        _python,
        lambda: _extras(),
        lambda: _settings(place, config),
        lambda: _folder(place),
        lambda: _space(place),
        lambda: _attributes(place),
        _descriptors,
        lambda: _answers(place),
    ]
    found = [check() for check in checks]
    if json:
        show.as_json([{"check": f.check, "state": f.state, "text": f.text} for f in found])
    else:
        show.table(
            f"doma doctor: {place.path}",
            ("check", "state", "finding"),
            [(f.check, f.state, f.text) for f in found],
        )
    if any(f.state == "problem" for f in found):
        raise ServiceUnavailable("doctor found a problem; the table says what to do")


def _python() -> Finding:
    text = f"Python {sys.version.split()[0]}, {ssl.OPENSSL_VERSION}"
    return Finding("python", "ok", text)


def _extras() -> Finding:
    parts = {"facility": ("coffea", "distributed", "hist", "mplhep", "func_adl"), "postgres": ("psycopg",)}
    lacking = [
        name for name, modules in parts.items() if any(not importlib.util.find_spec(m) for m in modules)
    ]
    if lacking:
        return Finding("extras", "warning", f"not installed: pip install 'doma-hep[{','.join(lacking)}]'")
    return Finding("extras", "ok", "facility and postgres are installed")


def _settings(place: Home, config: Path | None) -> Finding:
    try:
        load(config or _own(place))
    except ConfigError as e:
        return Finding("configuration", "problem", e.message)
    return Finding("configuration", "ok", str(config or _own(place) or "defaults and environment"))


def _own(place: Home) -> Path | None:
    return place / "doma.toml" if (place / "doma.toml").exists() else None


def _folder(place: Home) -> Finding:
    if not place.path.is_dir():
        above = next(p for p in (place.path, *place.path.parents) if p.exists())
        if not above.is_dir():
            return Finding("home", "problem", f"{above} is no folder; choose another with --home")
        return Finding("home", "ok", "does not exist yet; 'doma up' makes it")
    mode = place.path.stat().st_mode & 0o777
    if mode & 0o077:
        return Finding("home", "problem", f"others may enter it (mode {mode:o}); run: chmod 700 {place.path}")
    if not os.access(place.path, os.W_OK):
        return Finding("home", "problem", "cannot be written; run as its owner or choose another with --home")
    return Finding("home", "ok", f"mode {mode:o}")


def _nearest(place: Home) -> Path:
    return next(p for p in (place.path, *place.path.parents) if p.is_dir())


def _space(place: Home) -> Finding:
    usage = shutil.disk_usage(_nearest(place))
    text = f"{show.size(usage.free)} free of {show.size(usage.total)}"
    return Finding("disk", "warning" if usage.free < 5 << 30 else "ok", text)


def _attributes(place: Home) -> Finding:
    with tempfile.NamedTemporaryFile(dir=_nearest(place)) as file:
        try:
            os.setxattr(file.name, "user.doma.test", b"1")
        except OSError:
            return Finding("extended attributes", "warning", "not offered here; checksums go to side files")
    return Finding("extended attributes", "ok", "checksums are kept with the files")


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        return Finding(
            "open files", "warning", f"limit {soft}; for many clients run: ulimit -n {min(hard, 65536)}"
        )
    return Finding("open files", "ok", f"limit {soft}")


def _answers(place: Home) -> Finding:
    import httpx

    from doma.facility.access import Access
    from doma.net.problem import raise_for

    pid = place.running()
    if not pid:
        return Finding("running system", "ok", "nothing runs here; start it with 'doma up'")
    try:
        access = Access.read(place.path)
        with access.http(timeout=10) as http:
            raise_for(http.get("/health"))
            raise_for(http.request("PROPFIND", access.endpoint("site") + "/", headers={"Depth": "0"}))
    except httpx.HTTPError as e:
        return Finding(
            "running system", "problem", f"pid {pid} does not answer ({e}); stop it with 'doma down'"
        )
    except DomaError as e:
        return Finding("running system", "problem", f"pid {pid}: {e.message}")
    return Finding("running system", "ok", f"pid {pid} answers over https with the admin token")


def show_config(home: Path | None, config: Path | None, json: bool) -> None:
    """All keys with value and meaning."""
    place = Home(home or default_home())
    settings = load(config or _own(place))
    if json:
        show.as_json(settings.model_dump(mode="json"))
        return
    rows: list[tuple[Any, ...]] = []
    for section in Config.model_fields:
        part = getattr(settings, section)
        parts = (
            {section: part} if isinstance(part, BaseModel) else {f"{section}.{k}": v for k, v in part.items()}
        )
        for name, model in parts.items():
            for key, field in type(model).model_fields.items():
                rows.append(
                    (f"{name}.{key}", getattr(model, key), " ".join((field.description or "").split()))
                )
    show.table("configuration", ("key", "value", "meaning"), rows)
