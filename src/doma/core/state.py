"""State tables: what an event makes of a state, written down once.

A service's ``model.py`` holds ``{(state, event): state}``; everything else follows from it: which states are
final, which may precede (the WHERE of an UPDATE), and the diagram in the manual.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from doma.core.errors import Conflict

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class Machine(Generic[S, E]):
    """A table of transitions.

    Args:
        start: The state of a new thing.
        table: (state, event) to the next state. A pair that is missing cannot happen.

    Raises:
        ValueError: a state cannot be reached from ``start``: the table is wrong.

    >>> Door = StrEnum("Door", "OPEN SHUT GONE"); Act = StrEnum("Act", "PUSH BURN")
    >>> door = Machine(Door.SHUT, {(Door.SHUT, Act.PUSH): Door.OPEN, (Door.OPEN, Act.BURN): Door.GONE})
    >>> door.after(Door.SHUT, Act.PUSH) is Door.OPEN, door.before(Act.BURN), door.finals
    (True, frozenset({<Door.OPEN: 'open'>}), frozenset({<Door.GONE: 'gone'>}))
    """

    def __init__(self, start: S, table: Mapping[tuple[S, E], S]) -> None:
        self.start = start
        self.table = dict(table)
        self.states: frozenset[S] = frozenset({start, *self.table.values(), *(s for s, _ in self.table)})
        self.finals: frozenset[S] = self.states - {s for s, _ in self.table}
        """States that no event leaves."""
        reached, new = {start}, {start}
        while new:
            new = {after for (before, _), after in self.table.items() if before in new} - reached
            reached |= new
        if lost := self.states - reached:
            raise ValueError(f"no way leads from {start} to {', '.join(sorted(lost))}")

    def after(self, state: S, event: E) -> S:
        """The state that follows.

        Raises:
            Conflict: the event cannot happen in this state.
        """
        follows = self.table.get((state, event))
        if follows is None:
            possible = ", ".join(sorted(e for s, e in self.table if s == state)) or "nothing any more"
            raise Conflict(
                f"{event} is not possible in state {state}; possible: {possible}", state=str(state)
            )
        return follows

    def before(self, event: E) -> frozenset[S]:
        """The states in which an event can happen: the WHERE of the UPDATE that writes it."""
        return frozenset(s for s, e in self.table if e == event)

    def diagram(self) -> str:
        """The table as a Mermaid state diagram, in a stable order.

        >>> On = StrEnum("On", "YES NO"); Flip = StrEnum("Flip", "OFF")
        >>> print(Machine(On.YES, {(On.YES, Flip.OFF): On.NO}).diagram())
        stateDiagram-v2
            [*] --> yes
            yes --> no: off
            no --> [*]
        """
        lines = ["stateDiagram-v2", f"    [*] --> {self.start}"]
        lines += [f"    {before} --> {after}: {event}" for (before, event), after in self.table.items()]
        lines += [f"    {state} --> [*]" for state in sorted(self.finals)]
        return "\n".join(lines)
