"""The checker on records made by hand: correct ones pass, and each kind of error is named."""

from __future__ import annotations

import pytest

from faults.checker import (
    Branch,
    Came,
    Change,
    Client,
    Held,
    Invalidated,
    Record,
    Snapshot,
    adds_up,
    check,
    check_branches,
)

NOTES = frozenset({"notifications:u"})
SCORES = frozenset({"momentum_updates:u", "momentum_updates:all"})


def note(number: int, name: str = "n", *, read: bool = False, at: float = 5.0) -> Change:
    return Change(
        ("push_notification", "u", name, number), "u", NOTES, ("notification", name),
        None if read else (str(number), "sent"), at,
    )  # fmt: skip


HISTORY = [note(1), note(2), note(3, "m"), note(4), note(5, "m", read=True)]
KEYS = ("momentum:current:u", "momentum:history:u", "momentum:trend:u", "momentum:breakdown:u:d")


def snapshot(**rows: int) -> Snapshot:
    return Snapshot({("notification", name): (str(number), "sent") for name, number in rows.items()}, 10.0)


def judge(*record: Record, history: list[Change] = HISTORY, sees_rows: bool = True) -> list[str]:
    channels = NOTES | SCORES if sees_rows else NOTES
    return check(Client("c", "u", channels, sees_rows, list(record)), history)


def came(*numbers: int) -> list[Came]:
    return [Came(HISTORY[number - 1].what) for number in numbers]


def test_right_from_the_start_from_the_middle_and_across_a_second_snapshot() -> None:
    assert judge(snapshot(), *came(1, 2, 3, 4, 5)) == []
    assert judge(snapshot(n=2), *came(3, 4, 5)) == []
    assert judge(snapshot(n=4)) == []
    assert judge(snapshot(), *came(1, 2), snapshot(n=4, m=3), *came(5)) == []


def test_what_became_visible_in_another_order_than_it_was_written() -> None:
    assert judge(snapshot(m=3), *came(1, 2, 4, 5)) == []


def test_what_was_withheld_when_the_policies_changed_is_no_loss_if_a_later_version_came() -> None:
    def wrong(*numbers: int, until: float) -> list[str]:
        client = Client("c", "u", NOTES | SCORES, True, [snapshot(), *came(*numbers)], unversioned_until=until)
        return check(client, HISTORY)

    assert wrong(2, 3, 4, 5, until=100.0) == wrong(2, 4, 5, until=100.0) == []
    assert wrong(2, 3, 4, 5, until=0.0) != []
    assert wrong(1, 2, 3, 5, until=100.0) != [], "the last of its row"


def test_a_channel_that_was_left_and_joined_again_before_any_event_came() -> None:
    others = [
        Change(("score", "v", number), "v", SCORES, ("score", "v"), (str(number),), 5.0) for number in range(3)
    ]  # fmt: skip
    history = [note(1), others[0], note(2, "m"), others[1], note(3, "k"), others[2]]

    def wrong(*record: Record) -> list[str]:
        shown = Snapshot({("notification", "n"): ("1", "sent"), ("score", "v"): ("0",)}, 10.0)
        return check(Client("c", "u", NOTES | SCORES, True, [shown, *record]), history)

    left = [Held(NOTES, on=False), Held(NOTES, on=True)]
    after = [Came(change.what) for change in history[3:]]
    assert wrong(*left, *after) == [], "the note m came while the channel was left"
    assert "begin where" in wrong(*after)[0]
    assert "begin where" in wrong(*left, after[0], after[2])[0], "what comes later is not excused"


def test_missing_snapshot_is_reported_with_several_branches() -> None:
    for record in ([], [*came(1)]):
        client = Client("c", "u", NOTES | SCORES, True, list(record))
        assert check_branches(client, [HISTORY, HISTORY[:2]]) == ["c: it was never given a state"]


def test_what_was_withheld_before_history_ended_is_no_loss_if_the_survivor_never_had_it() -> None:
    def wrong(until: float) -> list[str]:
        record: list[Record] = [snapshot(), *came(1, 2, 3, 5), snapshot(n=2)]
        client = Client("c", "u", NOTES | SCORES, True, record, unversioned_until=until)
        return check_branches(client, [HISTORY, HISTORY[:2]])

    assert wrong(until=100.0) == []
    assert "missing" in wrong(until=0.0)[0]


def test_what_was_withheld_before_a_new_snapshot_is_no_loss_if_its_row_changed_again() -> None:
    def wrong(until: float) -> list[str]:
        record: list[Record] = [snapshot(), *came(1, 3), snapshot(n=4, m=3), *came(5)]
        return check(Client("c", "u", NOTES | SCORES, True, record, unversioned_until=until), HISTORY)

    assert wrong(until=100.0) == []
    assert "missing" in wrong(until=0.0)[0]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([snapshot(), *came(1, 3, 4, 5)], "missing"),
        ([snapshot(n=1), *came(3, 4, 5)], "begin where"),
        ([snapshot(), *came(1, 2, 3, 4)], "missing"),
        ([snapshot(n=2), *came(2, 3, 4, 5)], "begin where"),
        ([snapshot(), *came(1, 2, 2, 3, 4, 5)], "twice"),
        ([snapshot(), *came(1, 3, 2, 4, 5)], "out of order"),
        ([snapshot(), *came(1, 2, 3, 4, 5), Came(("x",))], "never committed"),
        ([snapshot(z=9), *came(1, 2, 3, 4, 5)], "never was"),
        ([*came(1)], "before any state"),
        ([], "never given a state"),
    ],
)
def test_each_kind_of_wrong_is_named(record: list[Record], said: str) -> None:
    assert any(said in sentence for sentence in judge(*record)), judge(*record)


def test_without_rows_only_what_was_committed_before_the_snapshot_may_be_missing() -> None:
    late = [*HISTORY[:3], note(4, at=11.0), note(5, "m", read=True, at=12.0)]
    assert judge(snapshot(), *came(4, 5), history=late, sees_rows=False) == []
    assert judge(snapshot(), *came(5), history=late, sees_rows=False) != []


def test_what_came_while_a_channel_was_left_may_be_missing_and_no_more() -> None:
    off, on = Held(NOTES, on=False), Held(NOTES, on=True)
    score = Change(("momentum_score_created", "u", "d"), "u", SCORES, ("score", "u"), ("Rising", "1.00"), 5.0)
    history = [HISTORY[0], HISTORY[1], score, HISTORY[2], HISTORY[3], HISTORY[4]]
    scored: list[Record] = [Invalidated(KEYS), Came(score.what)]
    assert judge(snapshot(), *came(1), off, *scored, on, *came(4, 5), history=history) == []
    assert judge(snapshot(), *came(1), off, *scored, *came(3, 4, 5), history=history) == []
    assert judge(snapshot(), *came(1), off, on, *scored, *came(5), history=history) != []
    assert judge(snapshot(), *came(1, 2), Came(score.what), *came(3, 4, 5), history=history) != []


def test_the_sum_of_snapshot_and_events() -> None:
    client = Client("c", "u", NOTES, True, [snapshot(n=2), *came(3, 4, 5)])
    assert adds_up(client, HISTORY, {("notification", "n"): ("4", "sent")})
    assert not adds_up(client, HISTORY, {("notification", "n"): ("2", "sent")})
    assert not adds_up(client, HISTORY, {("notification", name): ("4", "sent") for name in "nm"})


def branching(*record: Record) -> list[str]:
    """Check a record against two branches that share two events and differ in the third."""
    lost, other = [*HISTORY[:2], note(6)], [*HISTORY[:2], note(7)]
    return check_branches(Client("c", "u", NOTES | SCORES, True, list(record)), [lost, other])


def test_before_a_branch_is_lost_its_events_are_right_and_afterwards_those_of_the_other() -> None:
    lost, other = Came(note(6).what), Came(note(7).what)
    assert branching(snapshot(), *came(1, 2), lost, snapshot(n=2), other) == []
    assert branching(snapshot(), *came(1, 2), other) == [], "it was not there while the branch was lost"
    assert branching(snapshot(n=2), other) == []
    assert branching(snapshot(), *came(1, 2), lost, other) != []
    assert branching(snapshot(), *came(1, 2), lost) != [], "the end must be that of the branch that holds"
    assert branching(snapshot(), *came(1, 2), lost, snapshot(n=2)) != []
    assert branching(snapshot(), lost, snapshot(n=2), other) != []
    assert branching(*came(1), snapshot(n=2), other) != []


def test_a_snapshot_that_waited_for_a_truncate_may_find_the_table_empty() -> None:
    """The history ends there; in one that continues it is a loss."""
    client = Client("c", "u", NOTES | SCORES, True, [snapshot(), *came(2), snapshot()])
    ended = Branch(HISTORY[:2])
    assert check_branches(client, [ended, []]) != []
    ended.emptied = "score"
    assert check_branches(client, [ended, []]) != []
    ended.emptied = "notification"
    assert check_branches(client, [ended, []]) == []
    last = Client("c", "u", NOTES | SCORES, True, [snapshot(), *came(2)])
    assert check_branches(last, [ended, HISTORY[:2]]) != []
