"""The configuration: where values come from, and what is said about wrong ones."""

from pathlib import Path

import pytest

from doma.app.settings import load
from doma.core.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "doma.toml"
    path.write_text(text)
    return path


def test_every_key_has_a_default_that_works():
    assert load(None).listen.address == "127.0.0.1:0"


def test_the_environment_wins_over_the_file_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOMA_CACHE__SIZE", "12345")
    settings = load(written(tmp_path, "[cache]\nsize = 1\nlow = 0.5\n"))
    assert (settings.cache.size, settings.cache.low) == (12345, 0.5)


def test_lists_and_tables_come_from_both_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOMA_AUTH__AUDIENCES", '["https://se.example.org"]')
    settings = load(
        written(
            tmp_path,
            '[endpoints.tape]\nstore = "memory:"\n[[auth.issuers]]\nissuer = "https://iam.example.org/cms"\n',
        )
    )
    assert settings.endpoints["tape"].store == "memory:"
    assert settings.auth.issuers[0].prefixes == ("/",)
    assert settings.auth.audiences == ("https://se.example.org",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[listen]\nadress = 'x'", "unknown key listen.adress; did you mean address"),
        ("[cach]\nsize = 1", "unknown key cach; did you mean cache"),
        ("[cache]\nsize = -1", "cache.size: .*greater than or equal to 0"),
        ("[cache]\nsize = 'big'", "cache.size: .*valid integer"),
        ("[endpoints.x]\nstore = 'memory:'\nwriteable = true", "writeable"),
        ("[cache\nsize = 1", "not a TOML file"),
        ("\xff", "TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_place(tmp_path: Path, text: str, said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        load(written(tmp_path, text))
    assert "doma.toml" in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load(tmp_path / "nowhere.toml")


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOMA_CACH__SIZE", "1")
    with pytest.raises(ConfigError, match="DOMA_CACH__SIZE: no such section"):
        load(None)


def test_a_misspelt_key_in_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOMA_CACHE__SIZ", "1")
    with pytest.raises(ConfigError, match=r"unknown key cache\.siz; did you mean size"):
        load(None)
