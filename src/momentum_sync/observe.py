"""All that is worth telling, one function each.

Standard error gets one line an event: readable on a terminal, JSON otherwise. No token and no event's content is
ever among it.
"""

from __future__ import annotations

import logging
import sys

import structlog

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
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


def listening(url: str) -> None:
    """The server answers."""
    _log.info("listening", url=url)


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


def slot_unknown(said: str) -> None:
    """The database does not say how the slot is."""
    _log.debug("slot unknown", said=said)


def waits_for_transactions(below: int) -> None:
    """A new history cannot be served before older transactions have ended."""
    _log.warning("waiting for transactions to end", below_xid=below, see="select * from pg_stat_activity")


def history_broke(epoch: str, why: str) -> None:
    """Events may be missing, so a new history has begun; every client gets a snapshot."""
    _log.warning("history broke", epoch=epoch, why=why)


def slot_busy(said: str) -> None:
    """Another instance reads the slot; this one waits."""
    _log.info("waiting for the slot", said=said)


def capture_broke(said: str, pause: float) -> None:
    """The stream or the log failed; capture starts again after `pause` seconds."""
    _log.warning("capture broke", said=said, again_in_s=pause)


def malformed_message(said: str, size: int) -> None:
    """A logical message under our prefix was unreadable and is left out."""
    _log.error("malformed logical message", said=said, bytes=size)


def migrated(line: str) -> None:
    """One step of a migration."""
    _log.info("migrate", step=line)


def housekeeping_failed(said: str) -> None:
    """Partitions or metrics could not be kept this time; it is tried again."""
    _log.warning("housekeeping failed", said=said)


def partitions_dropped(names: list[str]) -> None:
    """Retention ended for these days of the log."""
    _log.info("partitions dropped", names=names)


def keys_unavailable(url: str, said: str) -> None:
    """The issuer's signing keys could not be fetched; those known before stay in use."""
    _log.warning("signing keys unavailable", url=url, said=said)


def connected(channels: int) -> None:
    """A client is live."""
    _log.debug("connected", channels=channels)


def disconnected(code: int | None) -> None:
    """A client is gone; `code` is what the server closed with, if it did."""
    _log.debug("disconnected", code=code)


def policy_failed(table: str, error: BaseException) -> None:
    """A policy could not be evaluated on a deleted row, so the caller is not told of it."""
    _log.warning("policy failed", table=table, said=type(error).__name__)


def failed(where: str, error: BaseException) -> None:
    """A defect: an exception that nothing foresaw. The client got a general answer."""
    _log.error("failed", where=where, exc_info=error)


def demo_waits(said: str) -> None:
    """The demo's world lost the database and tries again."""
    _log.warning("demo waits for the database", said=said)
