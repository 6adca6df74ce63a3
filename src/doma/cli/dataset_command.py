"""The verbs of datasets: the server's own catalogue, and what was looked up in any."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from doma.cli.cache_command import Json
from doma.cli.columns_command import at_place

if TYPE_CHECKING:
    from doma.cli.columns import Place

dataset = typer.Typer(
    no_args_is_help=True, help="Datasets: names for files here (doma://NAME), and what catalogues answered."
)

Name = Annotated[str, typer.Argument(help="Name of a dataset; queries say doma://NAME.")]
Shared = Annotated[
    bool | None, typer.Option("--shared/--private", help="Whether everybody of your VO may read it.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Drop the files that it had.")]


@dataset.command()
@at_place
def add(
    place: "Place",
    name: Name,
    urls: Annotated[list[str], typer.Argument(help="URLs of files; URL,URL are replicas of one file.")],
    shared: Shared = None,
    replace: Replace = False,
    json: Json = False,
) -> None:
    """Make a dataset, or add files to it."""
    from doma.cli.dataset import put

    put(place, {name: [{"replicas": u.split(",")} for u in urls]}, shared, replace, json)


@dataset.command(name="import")
@at_place
def import_(
    place: "Place",
    file: Annotated[Path, typer.Argument(help="Text with a URL a line, CSV with a head, or JSON.")],
    name: Annotated[str, typer.Option(help="Name of the dataset; JSON may hold several by name.")] = "",
    shared: Shared = None,
    replace: Replace = False,
    json: Json = False,
) -> None:
    """Make datasets from a file: .txt, .csv (url, name, bytes, events, adler32) or .json."""
    from doma.cli.dataset import put
    from doma.cli.dataset_files import read

    put(place, read(file, name), shared, replace, json)


@dataset.command(name="ls")
@at_place
def list_(
    place: "Place",
    looked_up: Annotated[
        bool, typer.Option("--looked-up", help="What your requests looked up, in any catalogue.")
    ] = False,
    stale: Annotated[bool, typer.Option("--stale", help="With the stale ones.")] = False,
    json: Json = False,
) -> None:
    """Your datasets and those that are shared with you."""
    from doma.cli.dataset import list_all, list_looked_up

    if looked_up or stale:
        list_looked_up(place, stale, json)
    else:
        list_all(place, json)


@dataset.command()
@at_place
def show(
    place: "Place",
    name: Annotated[str, typer.Argument(help="Name in the catalogue, or the number of what was looked up.")],
    json: Json = False,
) -> None:
    """The files of a dataset."""
    from doma.cli.dataset import show_one

    show_one(place, name, json)


@dataset.command()
@at_place
def rm(place: "Place", name: Name) -> None:
    """Forget a dataset of yours; its files stay where they are."""
    from doma.cli.dataset import remove

    remove(place, name)


@dataset.command()
@at_place
def stale(
    place: "Place",
    number: Annotated[int, typer.Argument(help="Of a dataset that was looked up; see ls --looked-up.")],
) -> None:
    """Have the next request ask the catalogue again."""
    from doma.cli.dataset import mark_stale

    mark_stale(place, number)
