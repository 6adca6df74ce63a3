"""The verbs and their options; each imports what it needs only when it runs (``--help`` stays fast)."""

from pathlib import Path
from typing import Annotated

import typer

from doma.cli import cache_command, client_command, columns_command, dataset_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Moves, caches, scans, transforms and delivers event data for High-Energy Physics.",
)

app.add_typer(cache_command.cache, name="cache")
app.add_typer(columns_command.columns, name="columns")
app.add_typer(dataset_command.dataset, name="dataset")
app.add_typer(client_command.client, name="client")
app.add_typer(client_command.user, name="user")
app.add_typer(client_command.keys, name="keys")

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder that holds everything; default: ~/.local/share/doma.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file; default: doma.toml of the home, if there is one.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]


@app.command()
def up(
    home: HomeOption = None,
    config: ConfigOption = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; overrides the configuration.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="Run only this role (repeatable).")] = None,
    data: Annotated[Path | None, typer.Option(help="Serve this folder read-only as endpoint 'data'.")] = None,
    json: Json = False,
) -> None:
    """Run the system in the foreground until it is stopped."""
    from doma.cli.run import up as run

    run(home, config, listen, role or [], data, json)


@app.command()
def down(home: HomeOption = None, json: Json = False) -> None:
    """Stop the system that runs in a home."""
    from doma.cli.run import down as run

    run(home, json)


@app.command()
def status(home: HomeOption = None, json: Json = False) -> None:
    """What runs in a home, and how it is."""
    from doma.cli.run import status as run

    run(home, json)


@app.command()
def token(
    scope: Annotated[
        list[str], typer.Option(help='For example "storage.read:/ storage.modify:/x" (repeatable).')
    ],
    home: HomeOption = None,
    audience: Annotated[list[str] | None, typer.Option(help="Who shall accept it (repeatable).")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Group to name in it (repeatable).")] = None,
    lifetime: Annotated[str, typer.Option(help="Seconds, or 30s, 10m, 1h, 2d.")] = "1h",
    subject: Annotated[str, typer.Option(help="Whom it speaks for.")] = "",
    json: Json = False,
) -> None:
    """Print one token of the embedded issuer, alone on its line."""
    from doma.cli.token import token as run

    run(home, " ".join(scope), audience or [], group or [], lifetime, subject, json)


@app.command(name="s3-key")
def s3_key(
    endpoint: Annotated[str, typer.Option(help="Name of the endpoint, which is the bucket.")] = "site",
    prefix: Annotated[str, typer.Option(help="Path that it opens; with / at the end: a folder.")] = "/",
    verb: Annotated[list[str] | None, typer.Option(help="read, create, modify (repeatable).")] = None,
    lifetime: Annotated[str, typer.Option(help="Seconds, or 30s, 10m, 1h, 2d.")] = "1h",
    home: HomeOption = None,
    json: Json = False,
) -> None:
    """Print an S3 key pair as shell variables: eval "$(doma s3-key)"."""
    from doma.cli.s3 import s3_key as run

    run(home, endpoint, prefix, verb or ["read"], lifetime, json)


@app.command()
def verify(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint.")] = "site",
    path: Annotated[str, typer.Option(help="Only what lies at and below this path.")] = "/",
    algorithm: Annotated[str, typer.Option(help="adler32, crc32c, md5, sha-256 …")] = "adler32",
    home: HomeOption = None,
    config: ConfigOption = None,
    json: Json = False,
) -> None:
    """Read every file of an endpoint again and compare it with its stored checksum."""
    from doma.cli.verify import verify as run

    run(home, config, endpoint, path, algorithm, json)


@app.command()
def doctor(home: HomeOption = None, config: ConfigOption = None, json: Json = False) -> None:
    """Check this machine and this home; says what to do about each problem."""
    from doma.cli.doctor import doctor as run

    run(home, config, json)


@app.command(name="config")
def show_config(home: HomeOption = None, config: ConfigOption = None, json: Json = False) -> None:
    """Every configuration key with its value and meaning."""
    from doma.cli.doctor import show_config as run

    run(home, config, json)


@app.command()
def demo(
    home: HomeOption = None,
    events: Annotated[int | None, typer.Option(min=1, help="Generate this many events instead.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result as JSON to this file.")] = None,
    plot: Annotated[Path, typer.Option(help="Where to write the plot.")] = Path("dimuon.png"),
) -> None:
    """The main job: real CMS events by four roads, and the histograms agree."""
    from doma.cli.demo import demo as run

    run(home, events, json, plot)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options of the command as a whole."""
    if version:
        from doma import __version__

        typer.echo(f"doma {__version__}")
        raise typer.Exit
