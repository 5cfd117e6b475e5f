"""State that gateways share: by cases, and by random histories in which any message may be lost, late or repeated."""

from __future__ import annotations

import random

import pytest

from momentum_sync.gateway.peers import Ask, Bye, Key, Message, Page, Peers, Report, Update
from momentum_sync.limits import PeerLimits

LIMITS = PeerLimits(expire_s=5.0, answer_s=1.0, items=3)


class One:
    """A gateway, with its messages and its copies of the others' items."""

    def __init__(self, origin: str) -> None:
        self.sent: list[Message] = []
        self.known: dict[tuple[str, Key], bytes] = {}
        self.news: list[bool] = []
        self.peers = Peers(origin, self.sent.append, self.changed, LIMITS)

    def changed(self, origin: str, key: Key, value: bytes | None, is_new: bool) -> None:
        self.news.append(is_new)
        if value is None:
            del self.known[origin, key]
        else:
            self.known[origin, key] = value

    def take(self) -> list[Message]:
        sent, self.sent[:] = list(self.sent), []
        return sent

    def hear(self, *messages: Message, at: float = 0.0) -> None:
        for message in messages:
            self.peers.heard(message, at)


def put(one: One, *names: str) -> list[Message]:
    for name in names:
        one.peers.put((name,), name.encode())
    one.peers.flush()
    return one.take()


def test_changes_are_copied_in_order_and_each_once() -> None:
    a, b = One("a"), One("b")
    first, second = put(a, "x"), put(a, "y")
    a.peers.remove(("x",))
    a.peers.remove(("unknown",))
    a.peers.flush()
    third = a.take()
    assert third == [Update("a", 3, ((("x",), None),))]
    b.hear(*first, *second, *first, *third, *second)
    assert b.known == {("a", ("y",)): b"y"}
    assert b.sent == []
    assert b.peers.others == 1


def test_changes_between_two_messages_are_one() -> None:
    a = One("a")
    a.peers.put(("x",), b"1")
    a.peers.put(("x",), b"2")
    assert a.peers.has_pending
    a.peers.flush()
    a.peers.flush()
    assert a.take() == [Update("a", 1, ((("x",), b"2"),))]
    assert not a.peers.has_pending


def test_many_items_take_several_messages() -> None:
    a, b = One("a"), One("b")
    messages = put(a, *"uvwxyz1")
    assert [len(message.items) for message in messages if isinstance(message, Update)] == [3, 3, 1]
    b.hear(*messages)
    assert len(b.known) == 7


def test_a_lost_update_is_noticed_by_the_next_and_by_the_report() -> None:
    a, b = One("a"), One("b")
    b.hear(*put(a, "x"))
    put(a, "y")
    b.hear(*put(a, "z"), at=1.0)
    assert b.take() == [Ask("b", "a")]
    a.hear(Ask("b", "a"))
    pages = a.take()
    assert [type(page) for page in pages] == [Page]
    b.hear(*pages)
    assert sorted(key for _, key in b.known) == [("x",), ("y",), ("z",)]
    put(a, "last")
    a.peers.report(1.0)
    b.hear(*a.take(), at=2.0)
    assert b.take() == [Ask("b", "a")]
    b.hear(Report("a", 4), at=2.5)
    assert b.take() == [], "it has asked a moment ago"


def test_messages_have_a_bound_in_bytes() -> None:
    sent: list[Message] = []
    peers = Peers("a", sent.append, lambda *_: None, PeerLimits(items=500, message_bytes=1_000))
    for number in range(10):
        peers.put((str(number),), b"x" * 400)
    peers.put(("large",), b"x" * 2_000)
    peers.flush()
    assert [len(each.items) for each in sent if isinstance(each, Update)] == [2, 2, 2, 2, 2, 1]


def test_one_that_comes_later_asks_for_everything() -> None:
    a, b = One("a"), One("b")
    put(a, *"uvwxyz1")
    a.peers.remove(("u",))
    a.peers.report(0.0)
    b.hear(*[message for message in a.take() if isinstance(message, Report)])
    a.hear(*b.take())
    pages = a.take()
    assert len(pages) == 2
    b.hear(pages[1])
    assert b.known == {}
    b.hear(pages[0])
    assert sorted(key for _, key in b.known) == [(name,) for name in "1vwxyz"]
    assert not any(b.news)
    b.hear(*put(a, "new"))
    assert b.news[-1]


def test_an_empty_gateway_answers_too() -> None:
    a, b = One("a"), One("b")
    put(a, "x")
    a.peers.remove(("x",))
    a.peers.report(0.0)
    b.hear(a.take()[-1])
    a.hear(*b.take())
    b.hear(*a.take())
    a.peers.report(1.0)
    b.hear(*a.take(), at=1.0)
    assert (b.known, b.take()) == ({}, [])


def test_answers_are_rare_and_none_is_forgotten() -> None:
    a = One("a")
    put(a, "x")
    a.hear(Ask("b", "a"), at=1.0)
    assert len(a.take()) == 1
    a.hear(Ask("c", "a"), Ask("d", "a"), Ask("d", "other"), at=1.5)
    assert a.take() == []
    a.peers.report(2.0)
    assert [type(message) for message in a.take()] == [Report, Page]
    a.peers.report(3.0)
    assert [type(message) for message in a.take()] == [Report]


def test_a_whole_copy_replaces_what_is_there() -> None:
    a, b = One("a"), One("b")
    b.hear(*put(a, "x", "y"))
    a.peers.remove(("x",))
    put(a, "z")
    a.hear(Ask("b", "a"))
    b.hear(*a.take())
    assert sorted(key for _, key in b.known) == [("y",), ("z",)]


def test_the_clients_of_a_silent_gateway_are_gone() -> None:
    a, b = One("a"), One("b")
    b.hear(*put(a, "x"), at=1.0)
    b.hear(Report("a", 1), at=4.0)
    b.peers.report(9.0)
    assert b.known != {}
    b.peers.report(9.1)
    assert (b.known, b.peers.others) == ({}, 0)
    b.hear(Report("a", 1), at=10.0)  # it was only slow
    a.hear(b.take()[-1])
    b.hear(*a.take(), at=10.0)
    assert b.known != {}


def test_the_clients_of_a_gateway_that_stops_are_gone() -> None:
    a, b = One("a"), One("b")
    b.hear(*put(a, "x"))
    a.peers.leave()
    b.hear(*a.take())
    assert (b.known, b.peers.others) == ({}, 0)
    assert put(a, "too late") == []
    b.hear(Bye("unknown"))


def test_its_own_messages_change_nothing() -> None:
    a = One("a")
    a.hear(*put(a, "x"), Report("a", 9), Bye("a"), Ask("a", "a"))
    assert (a.known, a.take(), a.peers.others) == ({}, [], 0)


@pytest.mark.parametrize("seed", range(40))
def test_random_histories(seed: int) -> None:
    chance = random.Random(seed)
    gateways = [One(name) for name in "abc"]
    own: dict[str, dict[Key, bytes]] = {one.peers.origin: {} for one in gateways}
    soup: list[Message] = []
    for step in range(300):
        at = step * 0.1
        one = chance.choice(gateways)
        key = (chance.choice("uvwxyz"), chance.choice("12"))
        match chance.randrange(5):
            case 0 | 1:
                own[one.peers.origin][key] = str(step).encode()
                one.peers.put(key, str(step).encode())
            case 2:
                own[one.peers.origin].pop(key, None)
                one.peers.remove(key)
            case 3:
                one.peers.flush()
            case 4:
                one.peers.report(at)
        for each in gateways:
            for message in each.take():
                soup.append(message)
                for other in gateways:
                    if chance.random() < 0.7:
                        other.hear(message, at=at)
        if chance.random() < 0.3 and soup:
            chance.choice(gateways).hear(chance.choice(soup[-20:]), at=at)
    for round_ in range(4):  # now nothing is lost
        at = 100.0 + 2 * round_
        for one in gateways:
            one.peers.report(at)
        while messages := [message for one in gateways for message in one.take()]:
            for message in messages:
                for other in gateways:
                    other.hear(message, at=at)
    for one in gateways:
        expected = {
            (origin, key): value
            for origin, items in own.items()
            for key, value in items.items()
            if origin != one.peers.origin
        }
        assert one.known == expected
