"""What a selection becomes, whatever its language: a query that checks and runs on any input.

``codegen`` names the language, as ServiceX's clients do: ``uproot`` (func_adl), ``uproot-raw``, ``python``.
A language's module is imported when its first query comes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from doma.columns.model import Progress
from doma.columns.remote import Bytes
from doma.core.errors import BadQuery

if TYPE_CHECKING:
    from doma.columns.sink import Sink

CODEGENS = ("uproot", "uproot-raw", "python")
"""Languages of this installation; what a service offers may be fewer."""

EXPERIMENTS = ("topcp", "atlasr21", "atlasr22", "atlasxaod", "cms")
"""Languages that need a configured code generator and an image."""

Tell = Callable[[Progress], None]


class Query(Protocol):
    """A selection, parsed and checked as far as that goes without a file."""

    @property
    def digest(self) -> str:
        """SHA-256 hex of the canonical question: what is the same in another spelling has the same one."""

    def check(self, data: Bytes) -> tuple[str, ...]:
        """Compare trees and names with a file, without running; the output columns, if they are known.

        Raises:
            BadQuery, UnknownColumn: with the nearest names. CorruptFile: the input.
        """

    def run(self, data: Bytes, sink: "Sink", step: int, tell: Tell) -> tuple[str, ...]:
        """Run on one file: tables into the sink, in steps of ``step`` bytes; the output columns.

        Raises:
            DomaError: what is wrong with the query or the input.
        """


def compile_query(codegen: str, selection: str, sandbox: str = "") -> Query:
    """The query of a selection; ``sandbox`` says how it runs where that is isolated (:class:`Task`).

    Raises:
        BadQuery, UnknownColumn, LimitExceeded: what is wrong, where, and what is near.
    """
    match codegen:
        case "uproot":
            from doma.columns.funcadl import FuncAdl

            return FuncAdl(selection)
        case "uproot-raw":
            from doma.columns.raw import UprootRaw

            return UprootRaw(selection)
        case "python":
            from doma.columns.function import PythonFunction

            return PythonFunction(selection, sandbox)
        case name if name in EXPERIMENTS:
            from doma.columns.container import ContainerQuery

            return ContainerQuery(codegen, selection, sandbox)
        case _:
            raise BadQuery(f"codegen: {codegen[:40]!r} is not offered; there is {', '.join(CODEGENS)}")
