"""Programs of experiments that fill disks, leave processes behind, or hide what they wrote."""

import os
import time
from pathlib import Path

import pytest

from doma.columns import container_run
from doma.columns.container import ContainerQuery
from doma.columns.container_run import run_process
from doma.columns.remote import LocalFile
from doma.columns.sink import open_sink
from doma.core.config import Container
from doma.core.errors import BadQuery, LimitExceeded

INPUT = Path(__file__).parents[1] / "data/uproot-Zmumu.root"
SELECTION = '{"reco": "x"}'


@pytest.fixture
def deliver(tmp_path):
    """Runs a shell script as the generated code of one input."""

    def run(script, **more):
        generator = tmp_path / "generator"
        generator.write_text(
            f"#!/bin/sh\ncat > /dev/null\ncat > $2/transform_single_file.sh <<'END'\n{script}\nEND\n"
        )
        generator.chmod(0o755)
        settings = Container(generator=str(generator), runner="command", volume=str(tmp_path), **more)
        query = ContainerQuery("topcp", SELECTION, settings.model_dump_json())
        data = LocalFile(INPUT.as_uri(), str(INPUT))
        try:
            with open_sink(tmp_path / "out", "parquet") as sink:
                return query.run(data, sink, 1 << 20, lambda _: None)
        finally:
            data.close()
            assert not list(tmp_path.glob("doma-container-*")), "it leaves nothing"

    return run


@pytest.mark.parametrize(
    "script",
    [
        "head -c 3000000 /dev/zero > big; sleep 60",
        "i=0; while [ $i -lt 3000 ]; do : > f$i; i=$((i+1)); done; sleep 60",
        "mkdir -p d; head -c 3000000 /dev/zero > d/x; ln d/x e; cp \"$1\" \"$2\"",
        "for i in $(seq 60); do mkdir d; cd d; done; sleep 60",
    ],
    ids=["big", "many", "at the end", "deep"],
)  # fmt: skip
def test_what_a_program_may_write_is_bounded(deliver, script):
    begun = time.monotonic()
    with pytest.raises(LimitExceeded, match="wrote more than 2 MiB"):
        deliver(script, output_size=2 << 20)
    assert time.monotonic() - begun < 30


def test_what_a_program_may_print_is_bounded(deliver, monkeypatch):
    monkeypatch.setattr(container_run, "MOST_PRINTED", 1 << 20)
    with pytest.raises(LimitExceeded, match="printed more than 1 MiB"):
        deliver("while :; do head -c 65536 /dev/zero; done")


@pytest.mark.parametrize(
    "script",
    ['mkfifo "$2"', 'ln -s "$1" "$2"', 'mkdir "$2"', "mkdir -p a/b; chmod 0 a; mkfifo p"],
    ids=["pipe", "link", "folder", "nothing"],
)
def test_an_output_that_is_no_plain_file_is_none_and_all_is_removed(deliver, script):
    with pytest.raises((BadQuery, LimitExceeded), match="wrote"):
        deliver(script)


def test_what_a_program_left_running_ends_with_it(tmp_path):
    """Also what has made a session of its own, and lost its parent."""
    mark = tmp_path / "pid"
    code = f"(setsid sh -c 'echo $$ > {mark}; exec sleep 300' &) ; while [ ! -s {mark} ]; do sleep 0.05; done"
    assert run_process(["sh", "-c", code], tmp_path, 30.0).code == 0
    pid = int(mark.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
