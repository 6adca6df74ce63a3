"""The verbs of datasets: the server's own catalogue, and what was looked up in any."""

from pathlib import Path
from typing import Annotated

import typer

from doma.cli.columns_command import CaOption, HomeOption, Json, UrlOption

dataset = typer.Typer(
    no_args_is_help=True, help="Datasets: names for files here (doma://NAME), and what catalogues answered."
)

Name = Annotated[str, typer.Argument(help="Name of a dataset; queries say doma://NAME.")]
Shared = Annotated[
    bool | None, typer.Option("--shared/--private", help="Whether everybody of your VO may read it.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Drop the files that it had.")]


@dataset.command()
def add(
    name: Name,
    urls: Annotated[list[str], typer.Argument(help="URLs of files; URL,URL are replicas of one file.")],
    shared: Shared = None,
    replace: Replace = False,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    json: Json = False,
) -> None:
    """Make a dataset, or add files to it."""
    from doma.cli.columns import Place
    from doma.cli.dataset import put

    put(Place(home, url, ca), {name: [{"replicas": u.split(",")} for u in urls]}, shared, replace, json)


@dataset.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="Text with a URL a line, CSV with a head, or JSON.")],
    name: Annotated[str, typer.Option(help="Name of the dataset; JSON may hold several by name.")] = "",
    shared: Shared = None,
    replace: Replace = False,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    json: Json = False,
) -> None:
    """Make datasets from a file: .txt, .csv (url, name, bytes, events, adler32) or .json."""
    from doma.cli.columns import Place
    from doma.cli.dataset import put
    from doma.cli.dataset_files import read

    put(Place(home, url, ca), read(file, name), shared, replace, json)


@dataset.command(name="ls")
def list_(
    looked_up: Annotated[
        bool, typer.Option("--looked-up", help="What your requests looked up, in any catalogue.")
    ] = False,
    stale: Annotated[bool, typer.Option("--stale", help="With the stale ones.")] = False,
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    json: Json = False,
) -> None:
    """Your datasets and those that are shared with you."""
    from doma.cli.columns import Place
    from doma.cli.dataset import list_all, list_looked_up

    if looked_up or stale:
        list_looked_up(Place(home, url, ca), stale, json)
    else:
        list_all(Place(home, url, ca), json)


@dataset.command()
def show(
    name: Annotated[str, typer.Argument(help="Name in the catalogue, or the number of what was looked up.")],
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
    json: Json = False,
) -> None:
    """The files of a dataset."""
    from doma.cli.columns import Place
    from doma.cli.dataset import show_one

    show_one(Place(home, url, ca), name, json)


@dataset.command()
def rm(name: Name, home: HomeOption = None, url: UrlOption = "", ca: CaOption = None) -> None:
    """Forget a dataset of yours; its files stay where they are."""
    from doma.cli.columns import Place
    from doma.cli.dataset import remove

    remove(Place(home, url, ca), name)


@dataset.command()
def stale(
    number: Annotated[int, typer.Argument(help="Of a dataset that was looked up; see ls --looked-up.")],
    home: HomeOption = None,
    url: UrlOption = "",
    ca: CaOption = None,
) -> None:
    """Have the next request ask the catalogue again."""
    from doma.cli.columns import Place
    from doma.cli.dataset import mark_stale

    mark_stale(Place(home, url, ca), number)
