"""Fuzz one end of root:// with atheris: the first argument is a corpus, the others are libFuzzer's.

The module beside a corpus, of the same name, says what is fuzzed.
"""

import sys
from importlib import import_module
from pathlib import Path

import atheris  # type: ignore[import-untyped] # only for this

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["doma.doors", "doma.net", "doma.store"]):
    target = import_module(f"tests.fuzz.{Path(sys.argv[1]).name}")


def main() -> None:
    """Write the seeds that are missing, then fuzz until told to stop."""
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, data in target.seeds().items():
        (folder / name.replace(" ", "-")).write_bytes(data)
    atheris.Setup(sys.argv, target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
