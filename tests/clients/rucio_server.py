"""A Rucio server of one process over SQLite, for tests: a program for an environment with PyPI's ``rucio``.

Its only argument is a folder, where it keeps everything. Makes the database and the account ``root``, prints
``READY <url>`` and serves on loopback until its standard input ends. Clients find ``rucio.cfg`` there.
"""

import os
import sys
import threading
from pathlib import Path

PASSWORD = "for tests on loopback only"
CONFIG = """
[common]
logdir = {folder}
loglevel = ERROR
[client]
rucio_host = {url}
auth_host = {url}
auth_type = userpass
username = root
password = {password}
account = root
request_retries = 1
[database]
default = sqlite:///{folder}/rucio.db
pool_reset_on_return = rollback
echo = 0
[bootstrap]
userpass_identity = root
userpass_pwd = {password}
userpass_email = root@localhost
[alembic]
cfg = {folder}/alembic.ini
[policy]
permission = generic
schema = generic
support = nobody
[reaper]
greedy = False
"""
ALEMBIC = """
[alembic]
script_location = {migrations}
sqlalchemy.url = sqlite:///{folder}/rucio.db
[loggers]
keys = root
[handlers]
keys = none
[formatters]
keys =
[logger_root]
level = ERROR
handlers = none
[handler_none]
class = NullHandler
args = ()
"""


def main(folder: Path) -> None:
    import rucio.db.sqla
    from werkzeug.serving import make_server

    # The port is known before the configuration is, and the configuration before the application.
    server = make_server("127.0.0.1", 0, lambda *asked: application(*asked), threaded=True)
    url = f"http://127.0.0.1:{server.port}"
    migrations = Path(rucio.db.sqla.__file__).with_name("migrate_repo")
    (folder / "alembic.ini").write_text(ALEMBIC.format(folder=folder, migrations=migrations))
    text = CONFIG.format(folder=folder, url=url, password=PASSWORD)
    (folder / "rucio.cfg").write_text(text)
    os.environ["RUCIO_CONFIG"] = str(folder / "rucio.cfg")
    from rucio.db.sqla import util

    util.build_database()
    util.create_base_vo()
    util.create_root_account()
    from rucio.web.rest.main import application

    print(f"READY {url}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
