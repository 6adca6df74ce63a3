"""The manual is true: its examples run, its links lead somewhere, its tables are those of the code.

A fenced ``python`` or ``sh`` block after the comment ``<!-- runs -->`` is run; one that is not meant to run
says why in ``<!-- not run: … -->``. The blocks of a page run in order in one process, the shell's variables
go from block to block, and all pages share one system.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tied import Tied

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/manual").glob("*.md"))]
EVERYTHING = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATIENCE = 55.0
"""Seconds for a start and for a page; below the suite's own limit, so that nothing is left running."""

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SOURCE = re.compile(r"`((?:\w+/)+\w+\.py)`")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)

DRIVER = r"""
import json, subprocess, sys
page, blocks = json.loads(sys.stdin.read())
names, state = {"__name__": "__main__"}, "shell-state"
open(state, "w").close()
for kind, line, code in blocks:
    print(f"--- {page}:{line}", flush=True)
    if kind == "python":
        exec(compile("\n" * line + code, page, "exec"), names)
    else:
        script = f"set -aeuo pipefail\n. ./{state}\n{code}\n{{ export -p; declare -f; }} > {state}\n"
        subprocess.run(["bash", "-c", script], check=True, stdin=subprocess.DEVNULL)
"""


def blocks(page):
    """(kind, line, code, mark) of every Python and shell block of a page."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        if found["kind"] in {"python", "sh"}:
            line = text.count("\n", 0, found.start("code"))
            yield found["kind"], line, found["code"], found["mark"] or ""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a user with a running system."""
    home = tmp_path_factory.mktemp("docs") / "home"
    found = {k: v for k, v in os.environ.items() if not k.startswith(("DOMA_", "BEARER_TOKEN"))}
    found |= {
        "DOMA_HOME": str(home),
        "DOMA_COLUMNS__WORKERS": "1",  # each imports the scientific stack, and one is enough here
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "default",
    }
    log = home.with_name("up.log")
    with log.open("wb") as out:
        system = Tied(["doma", "up"], env=found, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        end = time.monotonic() + PATIENCE
        while not (home / "run.json").exists():
            assert system.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield found
    finally:
        system.terminate()
        assert system.wait(PATIENCE) == 0, log.read_text()


def run_page(page, place, environment):
    """Run the blocks of a page in a process; its exit code and output."""
    runs = [(kind, line, code) for kind, line, code, mark in blocks(page) if mark == "runs"]
    log = place / "log"
    with log.open("wb") as out:
        # Its own session, so that what an example starts in the background can be ended with it.
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=place,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps([str(page), runs]).encode(), timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            out.write(f"not done after {PATIENCE} s".encode())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, log.read_text()


@pytest.fixture(scope="module")
def outcomes(request, environment, tmp_path_factory):
    """What the pages under test said: two at a time, since each waits for others most of its time."""
    chosen = [
        item.callspec.params["page"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_the_examples_of_a_page_run_as_they_are_printed"
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {
            page: pool.submit(run_page, page, tmp_path_factory.mktemp(page.stem), environment)
            for page in chosen
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_as_they_are_printed(page, outcomes):
    runs = [code for _, _, code, mark in blocks(page) if mark == "runs"]
    assert runs
    if shutil.which("curl") is None and any("curl " in code for code in runs):
        pytest.skip("the examples of this page need a program; the Debian package is: curl")
    code, said = outcomes[page].result()
    assert code == 0, said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_runs_or_says_why_not(page):
    silent = [
        line for _, line, _, mark in blocks(page) if mark != "runs" and not mark.startswith("not run: ")
    ]
    assert silent == []


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", EVERYTHING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    missing = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_every_source_file_that_a_page_names_is_there():
    named = {name for page in EVERYTHING for name in _SOURCE.findall(page.read_text())}
    assert len(named) > 10
    assert [
        n for n in sorted(named) if not any((top / n).exists() for top in (ROOT, ROOT / "src/doma"))
    ] == []


def test_the_generated_pages_are_those_of_the_code():
    check = [sys.executable, ROOT / "docs/generate.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
