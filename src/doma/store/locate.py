"""From the address of a store to the store: ``file:///dir``, ``memory:``, ``https://host/prefix``, ``root://host//dir``."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from doma.core.errors import ConfigError
from doma.core.events import Emit
from doma.core.url import https, redacted
from doma.store.file import FileStore
from doma.store.http import HttpStore, Token
from doma.store.memory import MemoryStore
from doma.store.protocol import Store
from doma.store.s3 import S3Store
from doma.store.s3_wire import credentials_of
from doma.store.xrootd import XrootdStore


def open_store(
    url: str,
    *,
    read_only: bool = False,
    fsync: bool = True,
    token: Token | None = None,
    ca_file: str | Path | None = None,
    allow_private: bool | None = None,
    emit: Emit = lambda event: None,
) -> Store:
    """The store at an address. ``cache+…`` is composed above this floor.

    Args:
        url: ``file:///dir``, ``memory:`` (each call a new one), ``http(s)://``, ``davs://``, ``root(s)://``.
        read_only: As :class:`FileStore` takes it.
        fsync: As :class:`FileStore` takes it.
        token: As :class:`HttpStore` takes it.
        ca_file: As :class:`HttpStore` takes it.
        allow_private: As :class:`HttpStore` takes it.
        emit: Takes the events of a file store.

    Raises:
        ConfigError: no engine takes this address, or the engine cannot use it.
    """
    try:
        parts = urlsplit(https(url))
    except ValueError as e:
        raise ConfigError(f"{redacted(url)}: this is no address of a store ({e})") from e
    match parts.scheme:
        case "memory":
            return MemoryStore()
        case "file" if parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
            return FileStore(Path(unquote(parts.path)), read_only=read_only, fsync=fsync, emit=emit)
        case "http" | "https":
            return HttpStore(url, token=token, ca_file=ca_file, allow_private=allow_private)
        case "root" | "roots" | "xroot" | "xroots":
            return XrootdStore(url, token=token, ca_file=ca_file, allow_private=allow_private, fsync=fsync)
        case "s3":
            return S3Store(url, credentials=credentials_of(os.environ), ca_file=ca_file)
        case _:
            known = "file:///dir, memory:, https://host/prefix, root://host//folder, s3://bucket/prefix"
            raise ConfigError(f"{redacted(url)}: no engine takes this address; offered are {known}")
