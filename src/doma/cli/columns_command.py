"""The verbs of column delivery: ask, follow, stop, and what a query means."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from doma.cli.cache_command import CaOption, HomeOption, Json, UrlOption

if TYPE_CHECKING:
    from doma.cli.columns import Place

columns = typer.Typer(no_args_is_help=True, help="Column delivery: a query over files, delivered as columns.")

Query = Annotated[
    str,
    typer.Argument(
        help="qastle or func_adl text, JSON of uproot-raw, or @FILE with one of them or a Python function."
    ),
]
Codegen = Annotated[
    str, typer.Option(help="uproot, uproot-raw or python; default: by what the query looks like.")
]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids of requests.")]
Id = Annotated[str, typer.Argument(help="Id of a request.")]


def at_place(command: Callable[..., None]) -> Callable[..., None]:
    """A command about a service: ``--home``, ``--url`` and ``--ca`` become its first argument, the place."""
    options = {"home": (HomeOption, None), "url": (UrlOption, ""), "ca": (CaOption, None)}

    @wraps(command)
    def placed(*, home: Path | None, url: str, ca: Path | None, **given: Any) -> None:
        from doma.cli.columns import Place

        command(Place(home, url, ca), **given)

    own = list(inspect.signature(command).parameters.values())[1:]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in options.items()
    ]
    # What the library reads of a command: where it has its options from.
    placed.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    placed.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
    return placed


@columns.command()
@at_place
def deliver(
    place: "Place",
    query: Query,
    files: Annotated[list[str] | None, typer.Argument(help="URLs of the inputs.")] = None,
    did: Annotated[
        str, typer.Option(help="A dataset instead of files: rucio://scope:name?files=3, cernopendata://1507")
    ] = "",
    list_: Annotated[
        Path | None, typer.Option("--from", help="File with one URL a line; - is standard input.")
    ] = None,
    codegen: Codegen = "",
    format: Annotated[str, typer.Option(help="parquet, root-ttree or root-rntuple.")] = "parquet",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(),
    title: Annotated[str, typer.Option(help="For people who look at it.")] = "",
    timeout: Annotated[str, typer.Option(help="How long to wait: 90, 10m, 2h.")] = "1d",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the request's id and leave.")] = False,
    json: Json = False,
) -> None:
    """Ask for columns and bring the results here; prints their paths."""
    from doma.cli.columns import Asked, deliver

    asked = Asked(query, tuple(files or ()), did, list_, codegen, format, title)
    deliver(place, asked, out, timeout, no_wait, json)


@columns.command(name="ls")
@at_place
def list_requests(place: "Place", json: Json = False) -> None:
    """Your requests, youngest first."""
    from doma.cli.columns import list_requests

    list_requests(place, json)


@columns.command()
@at_place
def show(
    place: "Place",
    id: Id,
    out: Annotated[Path | None, typer.Option(help="Bring the results into this folder, too.")] = None,
    json: Json = False,
) -> None:
    """One request with its files."""
    from doma.cli.columns import show_request

    show_request(place, id, out, json)


@columns.command()
@at_place
def cancel(
    place: "Place",
    ids: Ids = None,
    all: Annotated[bool, typer.Option("--all", help="Every request of yours that runs.")] = False,
    json: Json = False,
) -> None:
    """Stop requests; what is done stays."""
    from doma.cli.columns import cancel

    cancel(place, ids or [], all, json)


@columns.command(name="rm")
@at_place
def remove(place: "Place", ids: Ids = None, json: Json = False) -> None:
    """Remove ended requests with their results."""
    from doma.cli.columns import remove

    remove(place, ids or [], json)


@columns.command()
@at_place
def logs(place: "Place", id: Id, json: Json = False) -> None:
    """What went wrong in a request, file by file, and what its functions printed."""
    from doma.cli.columns import logs

    logs(place, id, json)


@columns.command()
@at_place
def codegens(place: "Place", json: Json = False) -> None:
    """The query languages that a service offers."""
    from doma.cli.columns import codegens

    codegens(place, json)


@columns.command()
def explain(
    query: Query,
    file: Annotated[str, typer.Argument(help="A local path or URL to look the columns up in.")] = "",
    codegen: Codegen = "",
    home: HomeOption = None,
    json: Json = False,
) -> None:
    """What a query reads, does and gives; needs no service, and runs nothing."""
    from doma.cli.columns_explain import explain

    explain(query, file, codegen, home, json)


@columns.command()
@at_place
def login(
    place: "Place",
    write: Annotated[
        Path | None, typer.Option(help="File to write, such as ~/.servicex; else print it.")
    ] = None,
    subject: Annotated[str, typer.Option(help="Whom the token speaks for; operators only.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(help="What may be read: storage.read:/path … (repeatable).")
    ] = None,
    lifetime: Annotated[str, typer.Option(help="Life of the token: 12h, 30d.")] = "30d",
    json: Json = False,
) -> None:
    """A servicex.yaml for ServiceX's own client, with a token that it refreshes itself with."""
    from doma.cli.columns_login import login

    login(place, write, subject, " ".join(scope or []), lifetime, json)


@columns.command()
@at_place
def logout(
    place: "Place", file: Annotated[Path, typer.Argument(help="The servicex.yaml.")], json: Json = False
) -> None:
    """Make the tokens in a servicex.yaml void."""
    from doma.cli.columns_login import logout

    logout(place, file, json)
