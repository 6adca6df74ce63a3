"""ServiceX's own client in processes of its own: its state is global, and some tests kill it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import COMMAND, System

DATA = Path(__file__).parents[1] / "data"
ZMUMU = DATA / "uproot-Zmumu.root"
PATIENCE = 100

PROLOGUE = """
import json, sys
from servicex import dataset, deliver, query
config, arguments = sys.argv[1], json.loads(sys.argv[2])
def shown(found):
    out = {}
    for name, files in found.items():
        try:
            out[name] = [str(f) for f in files]
        except Exception as e:
            out[name] = f"{type(e).__name__}: {e}"
    print("\\nRESULT " + json.dumps(out))
def momenta():
    return query.FuncADL_Uproot().FromTree("events").Select(lambda e: {"pt1": e.pt1, "M": e.M})
def run(samples, options=None, **more):
    shown(deliver({"General": options or {}, "Sample": samples}, config_path=config, **more))
"""


@dataclass
class User:
    """Who runs the client: configuration, cache and environment.

    Args:
        folder: For both.
        system: The service.
        token: A refresh token; None: none in the configuration.
        secure: Whether to come by TLS, trusting the system's CA.
    """

    folder: Path
    system: System
    token: str | None
    secure: bool = False
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        endpoint = self.system.run["https" if self.secure else "url"]
        lines = ["api_endpoints:", "  - name: doma", f"    endpoint: {endpoint}"]
        lines += [f"    token: {self.token}"] if self.token else []
        lines += ["default-endpoint: doma", f"cache_path: {self.cache}", ""]
        self.config.write_text("\n".join(lines))

    @property
    def config(self) -> Path:
        return self.folder / "servicex.yaml"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of ours, and the CA where TLS is used."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BEARER_", "SSL_", "DOMA_"))}
        ca = self.system.run["ca_file"]
        trust = {"SSL_CERT_FILE": ca, "AWS_CA_BUNDLE": ca} if self.secure else {}
        plain = {
            "HOME": str(self.folder),
            "AWS_EC2_METADATA_DISABLED": "true",
            "COLUMNS": "250",
            "NO_COLOR": "1",
        }
        return kept | trust | plain | self.extra

    def start(self, code: str, **arguments: Any) -> "subprocess.Popen[str]":
        """Run Python that uses the client; ``arguments`` are its ``arguments``."""
        program = self.folder / "program.py"  # func_adl reads the source of its lambdas
        program.write_text(PROLOGUE + code)
        return self._begin([sys.executable, str(program), str(self.config), json.dumps(arguments)])

    def python(self, code: str, **arguments: Any) -> dict[str, Any]:
        """What such a program found: file names by sample, or the text of an error."""
        return result(self.start(code, **arguments))

    def command(self, *words: str) -> tuple[int, str]:
        """The client's own command: its exit code and all that it said."""
        process = self._begin([str(Path(sys.executable).with_name("servicex")), *words])
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out + err

    def _begin(self, words: list[str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a program of :meth:`User.start` found."""
    out, err = process.communicate(timeout=PATIENCE)
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    assert lines, (out + err)[-3000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def refresh_token(system: System, *options: str) -> str:
    """As an operator makes one for a user."""
    done = subprocess.run(
        [*COMMAND, "columns", "login", "--home", str(system.home.path), "--json", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["refresh_token"])
