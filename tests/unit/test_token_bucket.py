"""Token buckets, with literal times."""

from __future__ import annotations

from momentum_sync.limits import Rate
from momentum_sync.token_bucket import TokenBucket, TokenBuckets

RATE = Rate(burst=3, per_second=2)


def test_a_burst_then_the_average_rate() -> None:
    bucket = TokenBucket(RATE, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.5) for _ in range(2)] == [True, False]
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False], "no more than the burst"


def test_a_refused_take_costs_nothing_and_halves_add_up() -> None:
    bucket = TokenBucket(Rate(burst=1, per_second=1), 0.0)
    assert bucket.take(0.0)
    assert not bucket.take(0.5)
    assert bucket.take(1.0)


def test_time_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = TokenBucket(RATE, 10.0)
    assert [bucket.take(5.0) for _ in range(4)] == [True, True, True, False]


def test_keys_have_buckets_of_their_own_and_full_ones_are_forgotten() -> None:
    buckets = TokenBuckets(RATE)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b", 0.0)
    assert len(buckets) == 2
    assert buckets.take("c", 0.5)
    assert len(buckets) == 3, "b is full again behind a, which is not: only the oldest are looked at"
    assert buckets.take("c", 1.5)
    assert len(buckets) == 1


def test_the_least_recently_used_key_is_looked_at_first() -> None:
    buckets = TokenBuckets(RATE)
    buckets.take("a", 0.0)
    buckets.take("b", 0.1)
    for _ in range(2):
        buckets.take("a", 0.2)
    assert buckets.take("c", 0.6)
    assert len(buckets) == 2, "b is full and forgotten; a is not full"


def test_beyond_the_most_keys_another_key_has_no_bucket_until_one_is_forgotten() -> None:
    buckets = TokenBuckets(Rate(burst=1, per_second=0.5), most=2)
    assert [buckets.take(key, 0.0) for key in "abcab"] == [True, True, False, False, False]
    assert len(buckets) == 2
    assert not buckets.take("c", 1.9)
    assert buckets.take("c", 2.0)
    assert len(buckets) == 1


def test_a_full_bucket_equals_a_new_one() -> None:
    bucket = TokenBucket(RATE, 10.0)
    assert bucket.is_full(10.0)
    bucket.take(10.0, 2)
    assert [bucket.is_full(now) for now in (10.0, 10.9, 11.0, 12.0)] == [False, False, True, True]


def test_tokens_used_elsewhere_are_debited_up_to_a_burst_below_nothing() -> None:
    bucket = TokenBucket(RATE, 0.0)
    bucket.debit(0.0, 2)
    assert [bucket.take(0.0) for _ in range(2)] == [True, False]
    bucket.debit(0.5, 1)
    assert not bucket.take(0.5), "the token that came back is used"
    bucket.debit(0.5, 100)
    assert [bucket.take(now) for now in (2.0, 2.5)] == [False, True], "three are owed, and come back within 1.5 s"


def test_a_debit_counts_for_its_key_alone() -> None:
    buckets = TokenBuckets(RATE)
    buckets.debit("a", 0.0, 3)
    assert [buckets.take(key, 0.0) for key in "ab"] == [False, True]
    assert buckets.take("a", 0.5)
    few = TokenBuckets(RATE, most=1)
    assert few.take("a", 0.0)
    few.debit("b", 0.0, 1)
    assert len(few) == 1, "a key without a bucket has nothing to debit"


def test_usage_is_reported_once_for_keys_above_a_share_of_the_rate() -> None:
    buckets = TokenBuckets(Rate(burst=10, per_second=4))
    assert buckets.take("before", 0.0, 9)
    assert buckets.taken(0.0) == {}
    buckets.record()
    for key, counts in {"a": (1, 2), "b": (1,), "c": (2,), "d": (0,), "e": (11,)}.items():
        for count in counts:
            buckets.take(key, 0.0, count)
    buckets.debit("f", 0.0, 5)
    assert buckets.taken(0.5) == {"a": 3, "c": 2}
    assert buckets.taken(0.5) == {}
    buckets.take("b", 0.0)
    buckets.take("d", 0.0, 0)
    assert buckets.taken(0.0) == {"b": 1}
