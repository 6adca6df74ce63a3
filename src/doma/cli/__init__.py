"""The ``doma`` command: a file a verb group; the only place that prints."""

import sys


def main() -> None:
    """Entry point: runs the verb; an error becomes one line and its exit code."""
    from doma.cli.command import app
    from doma.core.errors import DomaError

    try:
        app(prog_name="doma")
    except DomaError as e:
        from doma.cli.show import fail

        fail(e)
        sys.exit(e.exit)
    except BrokenPipeError:
        # the reader of our output went away: not an error of ours
        sys.stderr.close()
        sys.exit(0)
