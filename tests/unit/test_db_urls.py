"""What cannot be a database is refused with the reason."""

import pytest

from doma.core.errors import ConfigError, StorageUnavailable
from doma.db.engine import Database


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://a/b", "sqlite://", "sqlite:///:memory:"])
def test_a_wrong_url_is_a_configuration_error(url):
    with pytest.raises(ConfigError, match=r"database\.url"):
        Database(url)


def test_a_file_that_is_no_database_is_named(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("hello " * 1000)
    db = Database(f"sqlite:///{file}")
    with pytest.raises(ConfigError, match=r"notes\.txt.*not a database"):
        db.migrate()
    db.close()
    assert file.read_text().startswith("hello")


def test_a_missing_directory_is_named(tmp_path):
    db = Database(f"sqlite:///{tmp_path}/missing/doma.db")
    with pytest.raises(ConfigError, match=r"missing/doma\.db.*must exist"):
        db.migrate()
    db.close()


def test_an_absent_server_is_unavailable_and_its_password_untold(tmp_path):
    pytest.importorskip("psycopg")
    db = Database(f"postgresql://me:hush@/x?host={tmp_path}")
    with pytest.raises(StorageUnavailable) as caught:
        db.migrate()
    db.close()
    assert "hush" not in caught.value.message
