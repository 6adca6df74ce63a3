from enum import StrEnum

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from doma.core.errors import Conflict
from doma.core.state import Machine


class Job(StrEnum):
    READY = "READY"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"


class Told(StrEnum):
    CLAIM = "claim"
    FINISH = "finish"
    FAIL = "fail"
    LOSE = "lose"


JOB = Machine(
    Job.READY,
    {
        (Job.READY, Told.CLAIM): Job.RUNNING,
        (Job.RUNNING, Told.FINISH): Job.DONE,
        (Job.RUNNING, Told.FAIL): Job.FAILED,
        (Job.RUNNING, Told.LOSE): Job.READY,
    },
)


def test_an_event_that_cannot_happen_names_those_that_can():
    with pytest.raises(Conflict, match="finish is not possible in state READY; possible: claim"):
        JOB.after(Job.READY, Told.FINISH)
    with pytest.raises(Conflict, match="nothing any more"):
        JOB.after(Job.DONE, Told.CLAIM)


def test_before_is_where_an_event_can_happen():
    assert JOB.before(Told.LOSE) == {Job.RUNNING}
    assert JOB.finals == {Job.DONE, Job.FAILED}


def test_a_table_with_an_island_is_refused():
    with pytest.raises(ValueError, match="FAILED"):
        Machine(Job.READY, {(Job.READY, Told.CLAIM): Job.DONE, (Job.FAILED, Told.LOSE): Job.READY})


def test_the_diagram_has_every_transition():
    lines = JOB.diagram().splitlines()
    assert len(lines) == 1 + 1 + len(JOB.table) + len(JOB.finals)


class Walk(RuleBasedStateMachine):
    """A random walk: after and before agree, and nothing leaves a final state."""

    def __init__(self):
        super().__init__()
        self.state = JOB.start

    @rule(event=st.sampled_from(list(Told)))
    def happen(self, event):
        if self.state in JOB.before(event):
            assert self.state not in JOB.finals
            self.state = JOB.after(self.state, event)
        else:
            with pytest.raises(Conflict):
                JOB.after(self.state, event)

    @invariant()
    def known(self):
        assert self.state in JOB.states


TestWalk = Walk.TestCase
