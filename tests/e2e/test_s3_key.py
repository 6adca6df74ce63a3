"""``doma s3-key``: what it prints is all that an S3 client needs."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import COMMAND, System

SCRIPT = """
import boto3
s3 = boto3.client("s3")
s3.put_object(Bucket="site", Key="by-key/a.txt", Body=b"by key")
print(s3.get_object(Bucket="site", Key="by-key/a.txt")["Body"].read().decode())
"""


def test_the_printed_variables_open_the_folder_for_boto3(shared: System, tmp_path: object) -> None:
    key = " ".join([f"'{sys.executable}'", "-c", f"'{COMMAND[2]}'", "s3-key", f"--home '{shared.home.path}'",
                    "--prefix /by-key/", "--verb read", "--verb modify"])  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        ["bash", "-c", f'set -e; eval "$({key})"; exec "{sys.executable}" -c "$0"', SCRIPT],
        capture_output=True, text=True, timeout=60, env=environ | {"HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.stdout == "by key\n", done.stderr
    assert shared.ask("GET", "/site/by-key/a.txt").content == b"by key"
    assert shared.ask("DELETE", "/site/by-key").status_code == 204


@pytest.mark.parametrize(
    ("options", "word"), [(("--endpoint", "nowhere"), "nowhere"), (("--verb", "fly"), "read")]
)
def test_what_cannot_be_granted_is_said_in_one_line(
    shared: System, said: Callable[..., tuple[int, str, str]], options: tuple[str, ...], word: str
) -> None:
    code, _, err = said("s3-key", "--home", shared.home.path, *options)
    assert code != 0
    (line,) = err.splitlines()
    assert word in line
