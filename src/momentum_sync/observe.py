"""One function for each thing that is logged, counted, or both.

Standard error gets one line for each: readable on a terminal, JSON otherwise. No line has a token, the content of an
event or a message, or the name of a person or device; of errors only the parts that cannot quote a value are logged.
"""

from __future__ import annotations

import logging
import os
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


def configure(*, level: str, role: str = "all", name: str | None = None, form: str = "auto") -> None:
    """Set up the log.

    Args:
        level: a level of the `logging` module, such as `INFO`.
        role: of this process; with another than `all`, lines name it and the process.
        name: of this process among its parent's workers, which the lines give as well.
        form: `json`, `text`, or `auto`: text on a terminal, JSON elsewhere.
    """
    is_terminal = sys.stderr.isatty()
    rendering: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=is_terminal)
        if form == "text" or (form == "auto" and is_terminal)
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            *([] if role == "all" else [_process(role, name)]),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # the server logs a lost database itself, once
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Libraries)] + [_Libraries()]


def _process(role: str, name: str | None) -> structlog.typing.Processor:
    process = {"role": role} if name is None else {"worker": name, "role": role}
    pid = os.getpid()

    def add(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**process, "pid": pid, **line}

    return add


# PostgreSQL errors of these classes concern connections, resources and the server, never a row.
_ABOUT_NO_ROW = frozenset({"08", "28", "3D", "53", "55", "57", "58"})
_FRAMES = 8


def described(error: BaseException) -> str:
    """Return the loggable part of an error: messages of PostgreSQL and others may quote values and whole rows."""
    if isinstance(error, psycopg.Error):
        lines = (error.diag.message_primary or str(error)).strip().splitlines()
        of_the_connection = error.sqlstate is None and isinstance(error, psycopg.OperationalError)
        if lines and (of_the_connection or (error.sqlstate or "")[:2] in _ABOUT_NO_ROW):
            return summary("\n".join(lines))
        return f"{type(error).__name__} ({error.sqlstate})" if error.sqlstate else type(error).__name__
    if isinstance(error, MomentumError | OSError) and str(error):
        cause = error.__cause__
        # The error for the client hides the object's name; the log shows it.
        denied = cause.diag.message_primary if isinstance(cause, psycopg.errors.InsufficientPrivilege) else None
        return f"{error} ({denied})" if denied else str(error)
    return type(error).__name__


def _error_fields(error: BaseException | None) -> dict[str, object]:
    """Return where an exception was raised, without its message."""
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__ or error.__context__
    fields: dict[str, object] = {"error": described(error), "at": places}
    return fields | ({"because": described(cause)} if cause else {})


class _Libraries(logging.Handler):
    """Formats log records of libraries without their arguments, which may hold values."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # A message without arguments may be formatted already, with values in it.
        template = str(record.msg).strip().partition("\n")[0] if record.args else "message of a library"
        _log.log(record.levelno, template, logger=record.name, **_error_fields(error))


def listening(url: str, own_url: str | None = None) -> None:
    """Log that the server answers, and where this process does alone, if others share the first address."""
    _log.info("listening", url=url, **({} if own_url is None else {"own_url": own_url}))


def worker_ended(name: str, status: int, pause_s: float) -> None:
    """Log that a worker has exited unexpectedly; it is started again."""
    _log.error("worker ended", worker=name, status=status, retry_in_s=pause_s)


def worker_rolled(name: str, pid: int, *, is_live: bool) -> None:
    """Log that a worker was replaced; one that is not live ends the rolling restart."""
    if is_live:
        _log.info("worker replaced", worker=name, worker_pid=pid)
    else:
        _log.error("rolling restart stopped: the worker is not live", worker=name, worker_pid=pid)


def parent_ended() -> None:
    """Log that a worker stops because its parent has ended."""
    _log.warning("parent ended, stopping")


def worker_started(name: str, pid: int) -> None:
    """Log that a worker was started again."""
    _log.info("worker started", worker=name, worker_pid=pid)


def workers_started(gateways: int, pids: dict[str, int]) -> None:
    """Log the processes of the workers."""
    _log.info("workers started", gateways=gateways, **pids)


def unknown_setting(name: str) -> None:
    """Log an environment variable that looks like a setting and is none."""
    _log.warning("unknown setting", name=name, see="momentum-sync serve --help")


def refused_origin(origin: str) -> None:
    """Log a page of an origin that is not allowed."""
    # Any client can send an origin of any length.
    _log.warning("origin refused", origin=origin[:200], setting=f"MOMENTUM_ALLOWED_ORIGINS={origin[:200]}")


def no_ring(error: OSError) -> None:
    """Log that each client is written to with a system call of its own."""
    _log.info("io_uring not available", error=described(error), see="momentum-sync doctor")


def stopping(connections: int) -> None:
    """Log that the server stops and closes its connections."""
    _log.info("stopping", connections=connections)


def unconfirmed() -> None:
    """Log that the server ends without confirming the slot; the next one reads a few events again."""
    _log.warning("stopped before the slot was confirmed")


def development_secret() -> None:
    """Log that tokens are signed with a generated secret, because none is set."""
    _log.warning(
        "DEVELOPMENT MODE: no SUPABASE_JWT_SECRET or SUPABASE_URL is set. Tokens are checked against a secret kept in "
        "the data directory, and the server listens on loopback only."
    )


def capture_began(slot: str, epoch: str, number: int) -> None:
    """Log that capture holds the slot and continues after an event."""
    _log.info("capture started", slot=slot, epoch=epoch, offset=number)


def capture_live(slot: str, number: int) -> None:
    """Log that everything written before capture began has been read."""
    _log.info("capture live", slot=slot, offset=number)


def slot_lost(slot: str, why: str) -> None:
    """Log that the slot lost WAL that it needs and was recreated; a new epoch begins."""
    _log.error("slot lost", slot=slot, why=why)


def slot_may_be_stuck(said: str) -> None:
    """Log a stream error that may be permanent; if it recurs at the same LSN, the slot is recreated."""
    _log.warning("slot may be stuck", error=said)


def publishing(problems: Sequence[str], foreign_triggers: Sequence[str]) -> None:
    """Log changed problems that stop publishing and triggers that may reorder events."""
    if problems:
        _log.error("events are not published", problems=problems, fix="momentum-sync migrate --again")
    if foreign_triggers:
        _log.warning(
            "triggers run before the publishing trigger", triggers=foreign_triggers, see="README.md, Your own events"
        )
    if not problems and not foreign_triggers:
        _log.info("events are published")


def policies_unwatched(error: BaseException, times: int) -> None:
    """Record that checking policies failed `times` times in a row, so changes may be noticed late."""
    _log.error("policy changes are not detected", error=described(error), failures=times, see="select * from pg_locks")


def slot_unknown(error: BaseException) -> None:
    """Log that the state of the slot could not be read."""
    _log.debug("slot state unknown", error=described(error))


def waits_for_transactions(below: int) -> None:
    """Log that a new epoch waits for older transactions to end."""
    _log.warning("waiting for transactions to end", below_xid=below, see="select * from pg_stat_activity")


def history_broke(epoch: str, why: str) -> None:
    """Log that a new epoch has begun, because events may be missing; every client gets a snapshot."""
    _log.warning("history broke", epoch=epoch, why=why)


def slot_busy(said: str) -> None:
    """Log that another instance reads the slot and this one waits."""
    _log.info("waiting for the slot", error=said)


def broker_connected(server: str) -> None:
    """Log that NATS is connected."""
    _log.info("NATS connected", server=server)


def broker_failed(error: BaseException, servers: str = "") -> None:
    """Log an error of NATS, whose messages quote no value."""
    _log.warning("NATS failed", error=f"{type(error).__name__}: {error}".rstrip(": "), servers=servers)


def broker_ended(status: int) -> None:
    """Log that the private NATS server has ended; it is started again."""
    _log.warning("nats-server exited, restarting", status=status)


def unsent(events: int) -> None:
    """Count events that were not sent by NATS. Gateways read them from the log."""
    metrics.UNSENT.add(events)


def not_followed(relation: int, error: Exception) -> None:
    """Log that a table which a gateway needs cannot be followed. The gateway itself answers its clients."""
    _log.warning("table not followed", relation=relation, error=described(error))


def probe_failed(error: Exception) -> None:
    """Log that the database did not say how far the WAL is written."""
    _log.debug("probe failed", error=described(error))


def receipts_unsaved(error: Exception, waiting: int) -> None:
    """Log that receipts could not be saved; they are kept, within a bound, and saved later."""
    _log.warning("receipts not saved, kept for later", error=described(error), waiting=waiting)


def postgres_restarted(incarnation: int) -> None:
    """Log that PostgreSQL has restarted; clients with a snapshot from before the restart are closed and resync."""
    _log.info("PostgreSQL restarted", incarnation=f"{incarnation:x}")


def health_changed(status: str, reasons: Sequence[str]) -> None:
    """Log a change of the server's health, with the reasons if it is not healthy."""
    tell = _log.warning if reasons else _log.info
    tell("health changed", status=status, **({"reasons": list(reasons)} if reasons else {}))


def log_unread(error: Exception) -> None:
    """Log that a gateway could not read the log; it tries again."""
    _log.warning("log read failed, retrying", error=described(error))


def capture_broke(error: BaseException, pause: float) -> None:
    """Log that the stream or the log failed; capture starts again after `pause` seconds."""
    metrics.CAPTURE_BREAKS.add()
    _log.warning("capture failed", error=described(error), retry_in_s=pause)


def tasks(places: Sequence[str]) -> None:
    """Log the places at which the tasks of the event loop wait."""
    _log.info("tasks", count=len(places), waiting=sorted(places))


def malformed_message(said: str, size: int) -> None:
    """Log a logical message with the product's prefix that could not be read and is skipped."""
    metrics.FAILURES.add()
    _log.error("malformed logical message", error=said, bytes=size)


def no_message_partitions(names: Sequence[str]) -> None:
    """Log that `realtime.messages` has no partition for a day, so nothing can be sent from the database on it."""
    _log.error("realtime.messages lacks partitions", missing=names, see="docs/supabase.md")


def unsendable_message(said: str, size: int) -> None:
    """Log a row of `realtime.messages` that no client can get."""
    metrics.FAILURES.add()
    _log.error("a row of realtime.messages was not sent", error=said, bytes=size)


def messages_not_followed(error: BaseException) -> None:
    """Log that messages in `realtime.messages` do not become events yet; it is tried again."""
    _log.warning("realtime.messages not followed", error=described(error))


def send_failed(state: bytes) -> None:
    """Count a message that `realtime.send` could not insert; the writer got a warning."""
    metrics.SEND_FAILURES.add()
    text = state.decode(errors="replace")[:5]
    _log.warning("realtime.send failed", sqlstate=text if text.isalnum() else "?")


def migrated(line: str) -> None:
    """Log one step of a migration."""
    _log.info("migrate", step=line)


def housekeeping_failed(error: BaseException) -> None:
    """Log that maintenance of partitions or metrics failed and is retried."""
    _log.warning("housekeeping failed", error=described(error))


def metrics_unwritten(error: BaseException, count: int) -> None:
    """Log rows of `realtime_event_metrics` that could not be written and are lost."""
    _log.warning("metrics not written", rows=count, error=described(error))


def metrics_dropped(count: int) -> None:
    """Log how many rows of `realtime_event_metrics` had no room so far."""
    _log.warning("metrics dropped", rows=count)


def partitions_dropped(names: list[str]) -> None:
    """Log the partitions of the event log that were dropped after their retention."""
    _log.info("partitions dropped", names=names)


def keys_unavailable(url: str, error: BaseException) -> None:
    """Log that the issuer's signing keys could not be fetched; known ones stay in use."""
    _log.warning("signing keys unavailable", url=url, error=described(error))


def connected(channels: int, outcome: str, replayed: int) -> None:
    """Count a live client. `outcome` is a value of `metrics.OPENINGS`, `replayed` the events of a resume."""
    metrics.OPENINGS.add(value=outcome)
    if outcome == "resumed":
        metrics.REPLAYED.add(replayed)
    _log.debug("connected", channels=channels, outcome=outcome, replayed=replayed)


def disconnected(code: int | None) -> None:
    """Count a disconnected client; `code` is the server's close code, if it sent one."""
    metrics.CLOSES.add(value="client" if code is None else str(code))
    _log.debug("disconnected", code=code)


def refused(code: str) -> None:
    """Count a handshake or a request that was answered with an error."""
    metrics.REFUSALS.add(value=code)
    _log.debug("refused", code=code)


def delivered(event_types: Sequence[str], frames: int, size: int, delays: Sequence[float]) -> None:
    """Count events that were sent to their subscribers.

    Args:
        event_types: their types.
        frames: frames written, beside those that `sent` counts.
        size: bytes of those frames.
        delays: seconds from commit to last write, for events with subscribers.
    """
    metrics.EVENTS.add_each(event_types)
    metrics.FRAMES.add(frames)
    metrics.BYTES.add(size)
    metrics.DELAY.add(*delays)


def sent(frames: int, size: int) -> None:
    """Count messages to one socket: answers, snapshots, events of a catch-up."""
    metrics.FRAMES.add(frames)
    metrics.BYTES.add(size)


def broadcast(by: str) -> None:
    """Count a broadcast, by `socket`, by `http` or by the `database`."""
    metrics.BROADCASTS.add(1, by)


def checked(seen: int, withheld: int) -> None:
    """Count events that the database allowed and withheld."""
    metrics.CHECKED_EVENTS.add(seen, "seen")
    metrics.CHECKED_EVENTS.add(withheld, "withheld")


def appended(seconds: float) -> None:
    """Count an append to the log."""
    metrics.APPEND.add(seconds)


def telemetry_failed() -> None:
    """Log that no collector takes the metrics."""
    _log.warning("metrics not sent, retrying", hint="check OTEL_EXPORTER_OTLP_ENDPOINT, or unset MOMENTUM_OTEL")


def policy_failed(table: str, error: BaseException) -> None:
    """Log a policy that raised an error on a row version; the caller does not get the event."""
    _log.warning("policy failed", table=table, error=described(error))


def policy_not_compiled(table: str, role: str, why: str) -> None:
    """Log that each change of a table is checked in the database for callers of a role, and why."""
    _log.info("policy is checked per event", table=table, role=role, reason=why)


def failed(where: str, error: BaseException) -> None:
    """Log a defect: an exception that nothing handles. The client got a general answer."""
    metrics.FAILURES.add()
    _log.error("unhandled exception", where=where, **_error_fields(error))


def demo_waits(error: BaseException) -> None:
    """Log that the demo's simulation lost the database and retries."""
    _log.warning("demo waits for the database", error=described(error))
