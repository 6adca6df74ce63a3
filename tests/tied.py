"""Programs that do not outlive the test run, also when that is killed."""

import os
import subprocess
from collections.abc import Sequence
from typing import Any

# The watcher is of the program's own group, so it can hit no stranger that has got its number.
WATCH = '(read -r _ < "$0"; kill -9 0) & exec "$@"'


class Tied(subprocess.Popen[Any]):
    """A program in a session of its own, killed with all that it has started when we are gone.

    A pipe tells it, for what the kernel offers (``PR_SET_PDEATHSIG``) ends with a change of user.
    """

    def __init__(self, command: Sequence[Any], **options: Any) -> None:
        theirs, self._pipe = os.pipe()
        try:
            tied = ["sh", "-c", WATCH, f"/dev/fd/{theirs}", *map(os.fspath, command)]
            kept = (*options.pop("pass_fds", ()), theirs)
            super().__init__(tied, **options | {"start_new_session": True, "pass_fds": kept})
        except BaseException:
            self._release()
            raise
        finally:
            os.close(theirs)

    def wait(self, timeout: float | None = None) -> int:
        code = super().wait(timeout)
        self._release()
        return code

    def _release(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
