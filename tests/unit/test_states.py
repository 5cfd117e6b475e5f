"""State machines refuse transitions that are not declared."""

from __future__ import annotations

from enum import Enum

import pytest

from momentum_sync.states import IllegalTransition, enter


class Door(Enum):
    """States."""

    OPEN = 1
    CLOSED = 2
    GONE = 3


TRANSITIONS = {Door.OPEN: {Door.CLOSED}, Door.CLOSED: {Door.OPEN, Door.GONE}, Door.GONE: set[Door]()}


def test_a_declared_transition_returns_the_state() -> None:
    assert enter(Door.OPEN, Door.CLOSED, TRANSITIONS) is Door.CLOSED
    assert enter(Door.CLOSED, Door.GONE, TRANSITIONS) is Door.GONE


@pytest.mark.parametrize("state", Door)
def test_a_state_may_be_entered_again(state: Door) -> None:
    assert enter(state, state, TRANSITIONS) is state


@pytest.mark.parametrize(("current", "wanted"), [(Door.OPEN, Door.GONE), (Door.GONE, Door.OPEN)])
def test_any_other_transition_is_a_defect(current: Door, wanted: Door) -> None:
    with pytest.raises(IllegalTransition, match=f"Door: {current.name} -> {wanted.name}"):
        enter(current, wanted, TRANSITIONS)
