"""All that is worth telling, one function each: its log line beside its number.

Standard error gets one line an event: readable on a terminal, JSON otherwise. No token, no content of an event or a
message, and no name of a person or device is ever among it; so of errors only that is told which cannot quote a value.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import PurePath

import psycopg
import structlog

from momentum_sync import metrics
from momentum_sync.database.connection import summary
from momentum_sync.errors import MomentumError

_log = structlog.get_logger("momentum_sync")


def configure(*, level: str) -> None:
    """Sets up the log. `level` is a name of the `logging` module, such as `INFO`."""
    rendering: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=True) if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # we tell of a lost database ourselves, once
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Libraries)] + [_Libraries()]


# What a PostgreSQL error of these classes says is about connections, resources and the server, never about a row.
_ABOUT_NO_ROW = frozenset({"08", "28", "3D", "53", "55", "57", "58"})
_FRAMES = 8


def described(error: BaseException) -> str:
    """What may be told of an error. PostgreSQL's quote values and whole rows, and so may any that is not ours."""
    if isinstance(error, psycopg.Error):
        lines = (error.diag.message_primary or str(error)).strip().splitlines()
        of_the_connection = error.sqlstate is None and isinstance(error, psycopg.OperationalError)
        if lines and (of_the_connection or (error.sqlstate or "")[:2] in _ABOUT_NO_ROW):
            return summary("\n".join(lines))
        return f"{type(error).__name__} ({error.sqlstate})" if error.sqlstate else type(error).__name__
    if isinstance(error, MomentumError | OSError) and str(error):
        return str(error)
    return type(error).__name__


def _told(error: BaseException | None) -> dict[str, object]:
    """Where an exception came from, without what it says."""
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__ or error.__context__
    told: dict[str, object] = {"error": described(error), "at": places}
    return told | ({"because": described(cause)} if cause else {})


class _Libraries(logging.Handler):
    """What libraries tell, without the values that they tell it with: a message without arguments may hold them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        template = str(record.msg).strip().partition("\n")[0] if record.args else "a library complains"
        _log.log(record.levelno, template, logger=record.name, **_told(error))


def listening(url: str) -> None:
    """The server answers."""
    _log.info("listening", url=url)


def unknown_setting(name: str) -> None:
    """An environment variable looks like a setting and is none."""
    _log.warning("unknown setting", name=name, see="momentum-sync serve --help")


_refused_origins: set[str] = set()
_MOST_ORIGINS = 100


def refused_origin(origin: str) -> None:
    """A page of an origin that is not allowed wanted to connect. Told once for each, for so many of them."""
    if origin not in _refused_origins and len(_refused_origins) < _MOST_ORIGINS:
        _refused_origins.add(origin)
        _log.warning("origin refused", origin=origin[:200], setting=f"MOMENTUM_ALLOWED_ORIGINS={origin[:200]}")


def stopping(connections: int) -> None:
    """The server is about to end, and sends its clients away."""
    _log.info("stopping", connections=connections)


def unconfirmed() -> None:
    """The server ends without having confirmed the slot; the next one reads a little again."""
    _log.warning("stopped before the slot was confirmed")


def development_secret() -> None:
    """There is no secret, so tokens are signed with one made up for development."""
    _log.warning(
        "DEVELOPMENT MODE: no SUPABASE_JWT_SECRET or SUPABASE_URL is set. Tokens are checked against a secret kept in "
        "the data directory, and the server listens on loopback only."
    )


def capture_began(slot: str, epoch: str, number: int) -> None:
    """Capture holds the slot and reads on after an event."""
    _log.info("capture began", slot=slot, epoch=epoch, number=number)


def capture_live(slot: str, number: int) -> None:
    """All that was written before capture began has been read."""
    _log.info("capture live", slot=slot, number=number)


def slot_lost(slot: str, why: str) -> None:
    """The slot had lost what it needs, and was made anew; a new history begins."""
    _log.error("slot lost", slot=slot, why=why)


def slot_may_be_stuck(said: str) -> None:
    """Record a stream error that may be permanent; after three of them the slot is recreated."""
    _log.warning("slot may be stuck", said=said)


def publishing(problems: Sequence[str], foreign_triggers: Sequence[str]) -> None:
    """Log changed problems that stop publishing and triggers that may reorder events."""
    if problems:
        _log.error("events are not published", problems=problems, mend="momentum-sync migrate --again")
    if foreign_triggers:
        _log.warning("triggers run before ours", triggers=foreign_triggers, see="README.md, Your own triggers")
    if not problems and not foreign_triggers:
        _log.info("events are published")


def policies_unwatched(error: BaseException, times: int) -> None:
    """Record that checking policies failed `times` times in a row, so changes may be noticed late."""
    _log.error("policies are not watched", said=described(error), times=times, see="select * from pg_locks")


def slot_unknown(error: BaseException) -> None:
    """The database does not say how the slot is."""
    _log.debug("slot unknown", said=described(error))


def waits_for_transactions(below: int) -> None:
    """A new history cannot be served before older transactions have ended."""
    _log.warning("waiting for transactions to end", below_xid=below, see="select * from pg_stat_activity")


def history_broke(epoch: str, why: str) -> None:
    """Events may be missing, so a new history has begun; every client gets a snapshot."""
    _log.warning("history broke", epoch=epoch, why=why)


def slot_busy(said: str) -> None:
    """Another instance reads the slot; this one waits."""
    _log.info("waiting for the slot", said=said)


def capture_broke(error: BaseException, pause: float) -> None:
    """The stream or the log failed; capture starts again after `pause` seconds."""
    metrics.CAPTURE_BREAKS.add()
    _log.warning("capture broke", said=described(error), again_in_s=pause)


def malformed_message(said: str, size: int) -> None:
    """A logical message under our prefix was unreadable and is left out."""
    metrics.FAILURES.add()
    _log.error("malformed logical message", said=said, bytes=size)


def migrated(line: str) -> None:
    """One step of a migration."""
    _log.info("migrate", step=line)


def housekeeping_failed(error: BaseException) -> None:
    """Partitions or metrics could not be kept this time; it is tried again."""
    _log.warning("housekeeping failed", said=described(error))


def metrics_unwritten(error: BaseException, count: int) -> None:
    """Rows of `realtime_event_metrics` could not be written this time, and are left out."""
    _log.warning("metrics not written", rows=count, said=described(error))


def metrics_dropped(count: int) -> None:
    """There were more events to sample, or failures, than rows can wait; so many so far are left out."""
    _log.warning("metrics left out", rows=count)


def partitions_dropped(names: list[str]) -> None:
    """Retention ended for these days of the log."""
    _log.info("partitions dropped", names=names)


def keys_unavailable(url: str, error: BaseException) -> None:
    """The issuer's signing keys could not be fetched; those known before stay in use."""
    _log.warning("signing keys unavailable", url=url, said=described(error))


def connected(channels: int, outcome: str, replayed: int) -> None:
    """A client is live. `outcome` is how it began, as in `metrics.GREETINGS`, `replayed` what a resume brought."""
    metrics.GREETINGS.add(value=outcome)
    if outcome == "resumed":
        metrics.REPLAYED.add(replayed)
    _log.debug("connected", channels=channels, outcome=outcome, replayed=replayed)


def disconnected(code: int | None) -> None:
    """A client is gone; `code` is what the server closed with, if it did."""
    metrics.CLOSES.add(value="client" if code is None else str(code))
    _log.debug("disconnected", code=code)


def refused(code: str) -> None:
    """A handshake or a request was answered with an error."""
    metrics.REFUSALS.add(value=code)
    _log.debug("refused", code=code)


def delivered(event_types: Sequence[str], frames: int, size: int, delays: Sequence[float]) -> None:
    """Events of these types were handed to those who have their channels.

    `frames` of so many bytes were written at once, beside what `sent` tells. `delays` are the seconds from the commit
    for those events that anybody had a channel of.
    """
    metrics.EVENTS.add_each(event_types)
    metrics.FRAMES.add(frames)
    metrics.BYTES.add(size)
    metrics.DELAY.add(*delays)


def sent(frames: int, size: int) -> None:
    """Messages went to one socket: answers, snapshots, events that it was behind by."""
    metrics.FRAMES.add(frames)
    metrics.BYTES.add(size)


def checked(seen: int, withheld: int) -> None:
    """The database said of so many events that a caller may see them, and of so many that it may not."""
    metrics.SIGHT.add(seen, "seen")
    metrics.SIGHT.add(withheld, "withheld")


def appended(seconds: float) -> None:
    """A batch of events is in the log."""
    metrics.APPEND.add(seconds)


def policy_failed(table: str, error: BaseException) -> None:
    """A policy could not be evaluated on a deleted row, so the caller is not told of it."""
    _log.warning("policy failed", table=table, said=described(error))


def failed(where: str, error: BaseException) -> None:
    """A defect: an exception that nothing foresaw. The client got a general answer."""
    metrics.FAILURES.add()
    _log.error("failed", where=where, **_told(error))


def demo_waits(error: BaseException) -> None:
    """The demo's world lost the database and tries again."""
    _log.warning("demo waits for the database", said=described(error))
