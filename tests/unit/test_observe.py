"""Log lines of errors: place and kind, never a value."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
import structlog

from momentum_sync import observe
from momentum_sync.errors import CaptureError

SECRET = "Amara's secret"


class Quoting(psycopg.errors.CheckViolation):
    """An error in PostgreSQL's wording, with the row in it."""

    def __str__(self) -> str:
        return f"new row violates check constraint\nDETAIL: Failing row contains ({SECRET})."


async def leave_an_exception_behind() -> None:
    """Let asyncio log an exception in a message that is formatted already."""

    async def fail() -> None:
        raise ValueError(SECRET)

    task = asyncio.ensure_future(fail())
    await asyncio.wait([task])
    del task
    gc.collect()


@contextmanager
def log(monkeypatch: pytest.MonkeyPatch, *, form: str = "auto") -> Iterator[io.StringIO]:
    """Return the lines on standard error."""
    written = io.StringIO()
    root = logging.getLogger()
    handlers = list(root.handlers)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", written)
        observe.configure(level="DEBUG", form=form)
        try:
            yield written
        finally:
            root.handlers = handlers
            structlog.reset_defaults()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Quoting(), "Quoting (23514)"),
        (psycopg.DataError(f"invalid input syntax for type uuid: {SECRET}"), "DataError"),
        (psycopg.OperationalError("connection failed: no route to host"), "connection failed: no route to host"),
        (psycopg.errors.AdminShutdown("terminating connection"), "terminating connection"),
        (ValueError(SECRET), "ValueError"),
        (KeyError(SECRET), "KeyError"),
        (CaptureError("the stream ended"), "the stream ended"),
        (OSError(111, "Connection refused"), "[Errno 111] Connection refused"),
    ],
)
def test_an_error_is_described_without_a_value(error: Exception, said: str) -> None:
    assert observe.described(error) == said


@pytest.mark.parametrize(("form", "is_json"), [("auto", True), ("json", True), ("text", False)])
def test_the_form_of_the_log_is_the_operators_choice(
    monkeypatch: pytest.MonkeyPatch, form: str, *, is_json: bool
) -> None:
    with log(monkeypatch, form=form) as written:
        observe.parent_ended()
    assert written.getvalue().startswith("{") == is_json
    assert "\x1b" not in written.getvalue(), "no colors away from a terminal"


def test_a_defect_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with log(monkeypatch) as written:
        try:
            try:
                raise Quoting
            except psycopg.Error as error:
                raise ValueError(SECRET) from error
        except ValueError as error:
            observe.failed("handshake", error)
    text = written.getvalue()
    assert SECRET not in text
    for part in ("handshake", "ValueError", "Quoting (23514)", "test_observe.py:", "test_a_defect_says_where_it_is"):
        assert part in text


def test_what_libraries_tell_comes_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    with log(monkeypatch) as written:
        logger = logging.getLogger("some.library")
        logger.info("not of interest")
        logger.warning("cannot read %s", SECRET)
        try:
            raise ValueError(SECRET)
        except ValueError:
            logger.exception("it broke")
        logger.error(f"already formatted with {SECRET}")
        asyncio.run(leave_an_exception_behind())
    text = written.getvalue()
    assert SECRET not in text
    assert "cannot read %s" in text
    assert "logger=asyncio" in text or '"logger": "asyncio"' in text
    assert "some.library" in text
    assert "ValueError" in text
    assert "not of interest" not in text
