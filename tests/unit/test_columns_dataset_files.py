"""Lists of files as people keep them become what the service takes."""

import json

import pytest

from doma.cli.dataset_files import read
from doma.core.errors import BadRequest

U, V = "root://a.org//1.root", "https://b.org/1.root"


def test_lines_hold_replicas_and_comments(tmp_path):
    (tmp_path / "l.txt").write_text(f"# mine\n{U} {V}\n\n{V}\n")
    assert read(tmp_path / "l.txt", "n") == {"n": [{"replicas": [U, V]}, {"replicas": [V]}]}


def test_csv_has_a_head(tmp_path):
    (tmp_path / "l.csv").write_text(f'url,events,adler32\n"{U},{V}",5,0a1b2c3d\n{V},,\n')
    first = {"replicas": [U, V], "events": 5, "adler32": "0a1b2c3d"}
    assert read(tmp_path / "l.csv", "n") == {"n": [first, {"replicas": [V]}]}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ([U, {"url": V}], ["n"]),
        ({"files": [U, V]}, ["n"]),
        ({"files": {U: "Events", V: "Events"}}, ["n"]),
        ({"n": {"files": {U: "Events", V: "Events"}}, "m": {"files": []}}, ["n"]),
        ({"id": 1, "files": [{"paths": U, "file_size": 3}, {"paths": V}]}, ["n"]),
    ],
)
def test_json_comes_in_many_forms(tmp_path, value, names):
    (tmp_path / "l.json").write_text(json.dumps(value))
    found = read(tmp_path / "l.json", "n")
    assert list(found) == names
    assert [f["replicas"] for f in found["n"]] == [[U], [V]]


def test_datasets_keep_the_names_that_json_gives(tmp_path):
    (tmp_path / "l.json").write_text(json.dumps({"a": {"files": [U]}, "b": [V]}))
    assert list(read(tmp_path / "l.json", "")) == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["{", "3", '{"a": 3}', '[{"x": 1}]', '[{"url": "a", "events": "many"}]', "[3]"]
)
def test_what_is_no_list_is_refused(tmp_path, text):
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(BadRequest, match="not a list of files"):
        read(tmp_path / "l.json", "n")


def test_a_list_without_a_name_is_refused(tmp_path):
    (tmp_path / "l.txt").write_text(U)
    with pytest.raises(BadRequest, match="--name"):
        read(tmp_path / "l.txt", "")
