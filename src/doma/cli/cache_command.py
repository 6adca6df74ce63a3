"""The verbs of a running cache: what is in it, keep it, bring it, give it up, is it sound."""

from pathlib import Path
from typing import Annotated

import typer

cache = typer.Typer(no_args_is_help=True, help="A running cache: what is in it, and what shall be.")

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of the running system; default: ~/.local/share/doma.")
]
UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        help="https://HOST:PORT of another system; the token comes from $BEARER_TOKEN or $BEARER_TOKEN_FILE.",
    ),
]
CaOption = Annotated[Path | None, typer.Option("--ca", help="PEM file of the authority behind --url.")]
NameOption = Annotated[
    str, typer.Option("--endpoint", help="Name of the cache; default: the first of the configuration.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
Paths = Annotated[list[str], typer.Argument(help="Paths in the cache: /a/b, or /https://host/a/b.")]
From = Annotated[Path | None, typer.Option("--from", help="File with one path a line; - is standard input.")]
MaybePaths = Annotated[list[str] | None, typer.Argument(help="Paths in the cache: /a/b, /https://host/a/b.")]


@cache.command(name="ls")
def list_cached(
    path: Annotated[str, typer.Argument(help="Only what lies at and below it.")] = "/",
    limit: Annotated[int, typer.Option(min=1, help="The most files to show.")] = 1000,
    after: Annotated[str, typer.Option(help="Only names behind this one.")] = "",
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """What is in the cache, by name."""
    from doma.cli.cache import Remote, list_cached

    with Remote.of(home, url, ca, endpoint) as remote:
        list_cached(remote, path, after, limit, json)


@cache.command()
def stat(
    paths: Paths,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """What of each file is here."""
    from doma.cli.cache import Remote, holdings

    with Remote.of(home, url, ca, endpoint) as remote:
        holdings(remote, paths, None, json, each=True)


@cache.command()
def holdings(
    paths: MaybePaths = None,
    list_: From = None,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """How much of a list of files is here; a path with / at its end: of what is known below it."""
    from doma.cli.cache import Remote, holdings

    with Remote.of(home, url, ca, endpoint) as remote:
        holdings(remote, paths or [], list_, json, each=False)


@cache.command()
def evict(
    paths: Paths,
    now: Annotated[bool, typer.Option("--now", help="Not at the next purge: now.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what is pinned or being read.")] = False,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """Give files up, or all below a path with / at its end: first at the next purge, or now."""
    from doma.cli.cache import Remote, evict

    with Remote.of(home, url, ca, endpoint) as remote:
        evict(remote, paths, now, force, json)


@cache.command()
def pin(
    paths: MaybePaths = None,
    list_: From = None,
    lifetime: Annotated[str, typer.Option(help="Seconds, or 30s, 10m, 1h, 2d; default: cache.pin.")] = "",
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """Keep files for a time, also such as are not here yet; without paths: show the pins."""
    from doma.cli.cache import Remote, pin

    with Remote.of(home, url, ca, endpoint) as remote:
        pin(remote, paths or [], list_, lifetime, json)


@cache.command()
def unpin(
    paths: Paths,
    everybody: Annotated[bool, typer.Option("--everybody", help="Also pins of others.")] = False,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """Keep files no longer."""
    from doma.cli.cache import Remote, unpin

    with Remote.of(home, url, ca, endpoint) as remote:
        unpin(remote, paths, everybody, json)


@cache.command()
def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")] = False,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """Free disk down to the low mark."""
    from doma.cli.cache import Remote, purge

    with Remote.of(home, url, ca, endpoint) as remote:
        purge(remote, dry_run, json)


@cache.command()
def prestage(
    paths: MaybePaths = None,
    list_: From = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Only these columns: Muon_pt, Muon_* (repeatable).")
    ] = None,
    tree: Annotated[str, typer.Option(help="The tree that they are in.")] = "",
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """Bring files, or columns of them, before they are read."""
    from doma.cli.cache import Remote
    from doma.cli.cache_bring import prestage

    with Remote.of(home, url, ca, endpoint) as remote:
        prestage(remote, paths or [], list_, column or [], tree, json)


@cache.command()
def verify(
    paths: MaybePaths = None,
    list_: From = None,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """Read what is here against its checksums and fetch again what is damaged; / at the end: all below."""
    from doma.cli.cache import Remote
    from doma.cli.cache_bring import verify

    with Remote.of(home, url, ca, endpoint) as remote:
        verify(remote, paths or [], list_, json)


@cache.command()
def stats(
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    endpoint: NameOption = "",
    json: Json = False,
) -> None:
    """What the cache counted since its start, and its disk."""
    from doma.cli.cache import Remote, stats

    with Remote.of(home, url, ca, endpoint) as remote:
        stats(remote, json)
