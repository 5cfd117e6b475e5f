"""Rights count only if they were read after every change that is known."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from momentum_sync.database.pool import CallerPool
from momentum_sync.database.visibility import Snapshot
from momentum_sync.identity.channels import is_shared, own_channels
from momentum_sync.identity.rights import Rights
from momentum_sync.identity.tokens import Identity

ONE, TWO = (Identity("authenticated", UUID(int=number), "{}", None) for number in (1, 2))


def test_every_change_must_have_been_seen_in_whatever_order_they_came() -> None:
    rights = Rights(cast(CallerPool, None))
    assert rights.are_those_of(Snapshot.parse("5:5:"), ONE)
    rights.changed(20)
    rights.changed(10)
    assert not rights.are_those_of(Snapshot.parse("10:21:10"), ONE)
    assert not rights.are_those_of(Snapshot.parse("12:20:"), ONE)
    assert rights.are_those_of(Snapshot.parse("21:21:"), ONE)


def test_a_revocation_is_waited_for_by_its_user_alone() -> None:
    rights = Rights(cast(CallerPool, None))
    rights.changed(10, ONE.subject)
    assert not rights.are_those_of(Snapshot.parse("5:10:"), ONE)
    assert rights.are_those_of(Snapshot.parse("5:10:"), TWO)


def test_channels() -> None:
    assert own_channels(None) == []
    assert len(own_channels(UUID(int=1))) == 4
    assert is_shared("interventions:coaches")
    assert not is_shared(f"interventions:{UUID(int=1)}")
