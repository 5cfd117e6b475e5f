"""Receipts: a pong confirms everything written before its ping."""

from __future__ import annotations

from uuid import UUID

from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.receipts import Confirmed, Device, Receipt, Receipts

USER = UUID(int=1)
KEYS = ("notifications:u",)


def at(offset: int) -> Position:
    return Position("abcdef01", offset, 7)


def confirmed(offset: int, generation: int = 0) -> Confirmed:
    return Confirmed(at(offset), KEYS, generation)


def device(receipts: Receipts, *, brought: int | None = None, name: str = "phone") -> Device:
    made = Device(receipts, USER, name)
    made.begin("begin", None if brought is None else at(brought), KEYS, lambda: None)
    return made


def saved(receipts: Receipts) -> list[tuple[str, int]]:
    return [(receipt.device, receipt.position.offset) for receipt in receipts.take(100)]


def test_a_pong_confirms_the_position_of_its_ping() -> None:
    receipts = Receipts(10, lambda: 0)
    phone = device(receipts)
    payload = phone.ping("e-5", at(5), KEYS)
    assert saved(receipts) == []
    phone.pong(payload)
    assert receipts.take(1) == [Receipt(USER, "phone", at(5), KEYS, 0)]
    phone.pong(payload)
    assert saved(receipts) == [], "the same pong again says nothing new"


def test_a_client_that_resumes_has_what_it_brought() -> None:
    receipts = Receipts(10, lambda: 0)
    phone = device(receipts, brought=3)
    assert saved(receipts) == [("phone", 3)]
    assert phone.ping("begin", at(9), KEYS) == b"", "nothing was sent since"


def test_a_later_pong_confirms_earlier_pings_and_an_earlier_one_nothing_more() -> None:
    receipts = Receipts(10, lambda: 0)
    phone = device(receipts)
    first, second = phone.ping("e-1", at(1), KEYS), phone.ping("e-2", at(2), KEYS)
    phone.pong(second)
    assert saved(receipts) == [("phone", 2)]
    phone.pong(first)
    assert saved(receipts) == []


def test_other_pongs_say_nothing() -> None:
    receipts = Receipts(10, lambda: 0)
    phone = device(receipts)
    phone.ping("e-1", at(1), KEYS)
    for payload in (b"", b"x", b"2", b"-1", b"0", "²".encode()):
        phone.pong(payload)
    assert saved(receipts) == []


def test_unanswered_pings_are_bounded_and_a_slow_client_still_confirms() -> None:
    receipts = Receipts(10, lambda: 0)
    phone = device(receipts)
    payloads = [phone.ping(f"e-{number}", at(number), KEYS) for number in range(1, 20)]
    assert [payload for payload in payloads if payload] == payloads[:8]
    assert not phone.has_news("e-20"), "no further ping before an answer"
    phone.pong(payloads[3])
    assert saved(receipts) == [("phone", 4)]
    assert phone.has_news("e-20")


def test_the_keys_and_the_generation_are_those_at_the_ping() -> None:
    generations = [1]
    receipts = Receipts(10, lambda: generations[0])
    phone = device(receipts)
    payload = phone.ping("e-1", at(1), ["a", "b"])
    generations[0] = 2
    phone.pong(payload)
    assert receipts.take(10) == [], "the position is of a history that has ended"
    phone.pong(phone.ping("e-2", at(2), ["a", "b"]))
    assert receipts.take(10) == [Receipt(USER, "phone", at(2), ("a", "b"), 2)]


def test_of_two_sockets_of_a_device_the_later_position_counts() -> None:
    receipts = Receipts(10, lambda: 0)
    receipts.confirmed(USER, "phone", confirmed(9))
    receipts.confirmed(USER, "phone", confirmed(5))
    assert saved(receipts) == [("phone", 9)]


def test_a_ping_is_due_only_after_something_was_sent() -> None:
    receipts = Receipts(10, lambda: 0)
    phone = device(receipts, brought=3)
    assert not phone.has_news("begin")
    assert phone.has_news("e-4")
    payload = phone.ping("e-4", at(4), KEYS)
    assert not phone.has_news("e-4"), "a ping is under way"
    assert phone.has_news("e-5")
    phone.pong(payload)
    assert not phone.has_news("e-4")


def test_without_a_position_a_ping_confirms_nothing() -> None:
    receipts = Receipts(10, lambda: 0)
    assert device(receipts).ping("e-1", None, KEYS) == b""


def test_connected_devices_are_asked() -> None:
    receipts = Receipts(10, lambda: 0)
    asked: list[str] = []
    phone, tablet = Device(receipts, USER, "phone"), Device(receipts, USER, "tablet")
    phone.begin("a", None, KEYS, lambda: asked.append("phone"))
    tablet.begin("a", None, KEYS, lambda: asked.append("tablet"))
    tablet.lost()
    for ask in receipts.asks:
        ask()
    assert asked == ["phone"]


def test_what_waits_is_bounded_and_the_latest_of_a_device_counts() -> None:
    receipts = Receipts(2, lambda: 0)
    for name, offset in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        receipts.confirmed(USER, name, confirmed(offset))
    assert len(receipts) == 2
    assert saved(receipts) == [("a", 3), ("c", 4)]


def test_what_was_not_saved_is_kept_unless_there_is_something_newer() -> None:
    receipts = Receipts(10, lambda: 0)
    receipts.confirmed(USER, "a", confirmed(1, receipts.generation))
    receipts.confirmed(USER, "b", confirmed(1, receipts.generation))
    taken = receipts.take(10)
    receipts.confirmed(USER, "a", confirmed(2))
    receipts.put_back(taken)
    assert sorted(saved(receipts)) == [("a", 2), ("b", 1)]


def test_put_back_receipts_keep_their_generation() -> None:
    generations = [1]
    receipts = Receipts(10, lambda: generations[0])
    receipts.confirmed(USER, "a", confirmed(1, receipts.generation))
    taken = receipts.take(10)
    generations[0] = 2
    receipts.put_back(taken)
    assert saved(receipts) == []


def test_what_was_confirmed_in_another_history_is_not_saved() -> None:
    generations = [1]
    receipts = Receipts(10, lambda: generations[0])
    receipts.confirmed(USER, "a", confirmed(1, receipts.generation))
    generations[0] = 2
    receipts.confirmed(USER, "b", confirmed(1, receipts.generation))
    assert saved(receipts) == [("b", 1)]
    assert len(receipts) == 0
