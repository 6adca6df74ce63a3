"""Who gets the next free workers: users in turn, then the requests of a user in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Open:
    """A request with files that wait."""

    request: str
    owner: str
    waiting: int
    served: float
    """When a file of it was last claimed; 0: never."""


def shares(open_: Sequence[Open], busy: Mapping[tuple[str, str], int], limit: int) -> dict[str, int]:
    """How many files to claim of each request.

    The user with least running comes first, then that user's request with least running; among equals who
    was served longest ago, so nobody starves however many others there are.

    Args:
        open_: The requests.
        busy: (owner, request) to files that run.
        limit: Files to claim in all.

    >>> some = [Open("a", "alice", 50, 1.0), Open("b", "alice", 50, 2.0), Open("c", "bob", 1, 3.0)]
    >>> shares(some, {}, 4)
    {'a': 2, 'c': 1, 'b': 1}
    >>> shares(some, {("alice", "a"): 1}, 1)
    {'c': 1}
    """
    users: dict[str, int] = {}
    running = {o.request: 0 for o in open_}
    for (owner, request), count in busy.items():
        users[owner] = users.get(owner, 0) + count
        running[request] = count
    left = {o.request: o.waiting for o in open_}
    served = {o.owner: 0.0 for o in open_}
    for o in open_:
        served[o.owner] = max(served[o.owner], o.served)
    given: dict[str, int] = {}
    for _ in range(limit):
        able = [o for o in open_ if left[o.request] > 0]
        if not able:
            break
        best = min(able, key=lambda o: (users.get(o.owner, 0), served[o.owner], running[o.request], o.served))
        given[best.request] = given.get(best.request, 0) + 1
        users[best.owner] = users.get(best.owner, 0) + 1
        running[best.request] += 1
        left[best.request] -= 1
    return given
