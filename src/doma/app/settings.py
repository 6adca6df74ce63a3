"""Reading the configuration: one TOML file, then ``DOMA_SECTION__KEY`` from the environment."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from doma.core.config import Config
from doma.core.errors import ConfigError

ROLES = ("issuer", "storage", "cache", "columns", "scan", "web")
"""What a process can run; without ``--role``, all of them."""

NOT_SETTINGS = frozenset({"DOMA_HOME"})
"""Variables with our prefix that mean something else."""


def load(file: Path | None) -> Config:
    """The configuration from a file (None: defaults only) and the environment, which wins.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown or a value does not fit; names the
            file, the key and what was expected.
    """
    table: dict[str, Any] = {}
    if file is not None:
        try:
            table = tomllib.loads(file.read_text())
        except OSError as e:
            raise ConfigError(
                f"{file}: cannot be read ({e.strerror}); check the path given with --config"
            ) from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{file}: not a TOML file: {e}") from e
    _reject_unknown_variables()
    try:
        return _Settings(**table)
    except ValidationError as e:
        raise ConfigError(_explain(e, str(file) if file and table else "environment")) from e


class _Settings(BaseSettings, Config):
    """The models of the configuration, with the environment as a source."""

    model_config = SettingsConfigDict(
        env_prefix="DOMA_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def _reject_unknown_variables() -> None:
    for name in os.environ:
        if not name.startswith("DOMA_") or name in NOT_SETTINGS:
            continue
        section = name.removeprefix("DOMA_").partition("__")[0].lower()
        if section not in Config.model_fields:
            known = ", ".join(f"DOMA_{s.upper()}__…" for s in Config.model_fields)
            raise ConfigError(f"environment variable {name}: no such section; known are {known}")


def _explain(error: ValidationError, place: str) -> str:
    """One line for the first thing that is wrong, with the near keys."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] != "extra_forbidden":
        return f"{place}: {key}: {first['msg']}"
    section: type[BaseModel] = Config
    for part in first["loc"][:-1]:
        field = section.model_fields.get(str(part))
        kind = field.annotation if field is not None else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return f"{place}: unknown key {key}; 'doma config' lists all keys"
        section = kind
    near = difflib.get_close_matches(str(first["loc"][-1]), list(section.model_fields), 3)
    known = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(section.model_fields)}"
    return f"{place}: unknown key {key}; {known}"
