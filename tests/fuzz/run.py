"""Fuzz the root:// door with atheris: the first argument is the corpus, the others are libFuzzer's."""

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped] # only for this

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["doma.doors", "doma.net"]):
    from tests.fuzz import root_door


def main() -> None:
    """Write the seeds that are missing, then fuzz until told to stop."""
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, data in root_door.seeds().items():
        (folder / name.replace(" ", "-")).write_bytes(data)
    atheris.Setup(sys.argv, root_door.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
