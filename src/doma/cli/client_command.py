"""The verbs that register who may ask the embedded issuer for tokens, and renew its keys."""

from pathlib import Path
from typing import Annotated

import typer

client = typer.Typer(no_args_is_help=True, help="Clients of the embedded token issuer.")
user = typer.Typer(no_args_is_help=True, help="Users who log in on the issuer's pages.")
keys = typer.Typer(no_args_is_help=True, help="Keys of the embedded token issuer.")

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder that holds everything; default: ~/.local/share/doma.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
Scope = Annotated[
    list[str],
    typer.Option(help='What may be asked for: "storage.read:/ storage.modify:/x fts" (repeatable).'),
]
Group = Annotated[list[str] | None, typer.Option(help="Group that tokens may name (repeatable).")]


@client.command(name="add")
def add_client(
    name: Annotated[str, typer.Argument(help="Its id.")],
    scope: Scope,
    home: HomeOption = None,
    audience: Annotated[list[str] | None, typer.Option(help="Of its tokens by default (repeatable).")] = None,
    group: Group = None,
    grant: Annotated[
        list[str] | None,
        typer.Option(
            help="client_credentials, token-exchange, refresh_token, device_code or authorization_code"
            " (repeatable)."
        ),
    ] = None,
    redirect: Annotated[
        list[str] | None, typer.Option(help="Where authorization codes may go (repeatable).")
    ] = None,
    lifetime: Annotated[str, typer.Option(help="Longest life of its tokens: 30m, 6h.")] = "",
    refresh_lifetime: Annotated[str, typer.Option(help="Life of its refresh tokens: 30d.")] = "",
    profile: Annotated[str, typer.Option(help="Of its tokens: wlcg or scitokens.")] = "wlcg",
    alg: Annotated[str, typer.Option(help="What its tokens are signed with: RS256 or ES256.")] = "RS256",
    public: Annotated[bool, typer.Option("--public", help="It cannot keep a secret.")] = False,
    jwks: Annotated[Path | None, typer.Option(help="File with its public keys: no secret is made.")] = None,
    json: Json = False,
) -> None:
    """Register a client and print its secret, alone on its line; it is not shown again."""
    from doma.cli.client import add_client as run

    run(
        home,
        name,
        " ".join(scope),
        json,
        audience=audience or [],
        groups=group or [],
        grants=grant or [],
        redirect_uris=redirect or [],
        lifetime=lifetime,
        refresh_lifetime=refresh_lifetime,
        profile=profile,
        alg=alg,
        public=public,
        jwks=jwks,
    )


@client.command(name="ls")
def list_clients(home: HomeOption = None, json: Json = False) -> None:
    """Who is registered."""
    from doma.cli.client import list_all

    list_all(home, json, users=False)


@client.command(name="rm")
def remove_client(name: str, home: HomeOption = None, json: Json = False) -> None:
    """Forget a client; tokens that it has live on until they expire, refresh tokens end."""
    from doma.cli.client import remove

    remove(home, name, json, users=False)


@user.command(name="add")
def add_user(
    name: Annotated[str, typer.Argument(help="Becomes the subject of tokens.")],
    scope: Scope,
    home: HomeOption = None,
    group: Group = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password; else one is made and printed.")
    ] = False,
    json: Json = False,
) -> None:
    """Register a user and print the password, alone on its line; it is not shown again."""
    from doma.cli.client import add_user as run

    run(home, name, " ".join(scope), group or [], password_stdin, json)


@user.command(name="ls")
def list_users(home: HomeOption = None, json: Json = False) -> None:
    """Who can log in."""
    from doma.cli.client import list_all

    list_all(home, json, users=True)


@user.command(name="rm")
def remove_user(name: str, home: HomeOption = None, json: Json = False) -> None:
    """Forget a user; access tokens live on until they expire, refresh tokens end."""
    from doma.cli.client import remove

    remove(home, name, json, users=True)


@keys.command()
def rotate(
    home: HomeOption = None,
    now: Annotated[bool, typer.Option("--now", help="Sign with the new keys at once (emergency).")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Withdraw the old keys and all their tokens.")] = False,
    macaroons: Annotated[
        bool, typer.Option("--macaroons", help="The macaroon secret instead; twice ends all macaroons.")
    ] = False,
    json: Json = False,
) -> None:
    """Make new signing keys: published now, used in two days; running systems follow."""
    from doma.cli.client import rotate as run

    run(home, now, drop, macaroons, json)
