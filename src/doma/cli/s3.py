"""``doma s3-key``: a key pair of the s3 door, ready for a shell."""

from collections.abc import Sequence
from pathlib import Path

from doma.app.home import default_home
from doma.cli import show
from doma.cli.token import duration
from doma.core.errors import ServiceUnavailable
from doma.facility.access import Access
from doma.net.problem import raise_for


def s3_key(
    home: Path | None, endpoint: str, prefix: str, verbs: Sequence[str], lifetime: str, json: bool
) -> None:
    """Ask the running system for a key pair and print it as variables that every S3 client reads."""
    import httpx

    access = Access.read(home or default_home())
    wanted = {"endpoint": endpoint, "prefix": prefix, "verbs": list(verbs), "lifetime": duration(lifetime)}
    try:
        with access.http(timeout=30) as http:
            key = raise_for(http.post("/api/v1/s3/keys", json=wanted)).json()
    except httpx.HTTPError as e:
        raise ServiceUnavailable(f"{access.https}: does not answer ({e}); try 'doma doctor'") from e
    if json:
        show.as_json({**key, "ca_file": str(access.ca_file)})
        return
    names = {
        "AWS_ACCESS_KEY_ID": key["access_key"],
        "AWS_SECRET_ACCESS_KEY": key["secret_key"],
        "AWS_SESSION_TOKEN": key["session_token"],
        "AWS_ENDPOINT_URL": key["endpoint_url"],
        "AWS_REGION": "us-east-1",
        "AWS_CA_BUNDLE": access.ca_file,
    }
    for name, value in names.items():
        print(f"export {name}='{value}'" if value else f"unset {name}")
