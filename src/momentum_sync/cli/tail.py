"""`momentum-sync tail`: events in the terminal."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID, uuid4

import typer
from rich.console import Console
from rich.text import Text

from momentum_sync import (
    Client,
    ClientError,
    ConnectionLost,
    Ended,
    Event,
    FeedFrozen,
    FileStore,
    Rejected,
    Resync,
    TokenUnavailable,
)
from momentum_sync.cli import explained
from momentum_sync.cli.options import server_url
from momentum_sync.cli.token import Role, secret_of, sign
from momentum_sync.cli.topic_tail import REFUSED as _REFUSED
from momentum_sync.cli.topic_tail import Message, TopicTail
from momentum_sync.errors import Unsuitable
from momentum_sync.settings import read
from momentum_sync.tasks import end
from momentum_sync.wire.messages import TOOL

_ALL = ("momentum_updates:all", "interventions:coaches")
_TOKENS_LAST = timedelta(hours=1)
_COLOURS = {"Rising": "green", "Steady": "blue", "NeedsCare": "yellow"}
_OTHERS = "Use another token, or other channels."
_PASSING = (ConnectionLost, FeedFrozen, Rejected, TokenUnavailable)
_PLAIN = ("event_type", "user_id", "timestamp")


def tail(
    url: Annotated[
        str | None, typer.Option(help="Root URL of the server. Unset: the address where serve would listen.")
    ] = None,
    user: Annotated[UUID | None, typer.Option(help="User whose events are shown: the id in auth.users.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Show scores and interventions of all users.")] = False,
    channel: Annotated[list[str] | None, typer.Option(help="Additional channel; may be repeated.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--type", help="Show only events of this type, such as 'intervention_*'; may be repeated."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Show only events with this field value, such as state_changed=true; may be repeated."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="MOMENTUM_TOKEN", help="Access token; if omitted, one is signed with SUPABASE_JWT_SECRET."),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(help="Show broadcasts and presence of a private topic of Supabase's protocol, such as room-1."),
    ] = None,
    public: Annotated[bool, typer.Option(help="With --topic: the public topic of this name.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="File that stores the position: the next run resumes where this one ends.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Exit after this number of events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for programs.")] = False,
) -> None:
    """Show the events of one user or of all users as they are committed, or the messages of a topic.

    Reconnects automatically and resumes without a gap; prints a notice where events may be missing. Needs a token
    (--token, MOMENTUM_TOKEN), or SUPABASE_JWT_SECRET to sign one with: a token of the user for --user, one of
    service_role for --all, --channel and --topic without --user.

    With --topic, --type is the event of a broadcast, or joined, left or here, and --where a field of what a member
    sent; after a reconnect, messages of the last seconds may come again.
    """
    with explained():
        _check(
            user, token, topic, has_channels=everyone or bool(channel), has_state=state is not None, is_public=public
        )
        url = url or server_url()
        wanted = _Wanted(kind or [], _conditions(where or []))
        shown = _Json(sys.stdout) if as_json else _Lines(_Terminal(highlight=False, soft_wrap=True))
        # A function, because `tail` may run for longer than one token lasts.
        given = _token_maker(user) if token is None else lambda: token
        if topic is not None:
            work = _tail_topic(TopicTail(url, topic, given, is_private=not public), topic, wanted, shown, count)
        else:
            channels = [*(_ALL if everyone else ()), *(channel or ())]
            work = _tail(url, given if token is None else token, user, channels, state, wanted, shown, count)
        _run(work)


def _run(work: Coroutine[None, None, None]) -> None:
    try:
        asyncio.run(work)
    except Ended as error:
        raise Unsuitable(f"The server rejected this client for good: {error}.", _OTHERS) from None
    except BrokenPipeError:  # the reader has exited; nothing must be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _check(
    user: UUID | None, token: str | None, topic: str | None, *, has_channels: bool, has_state: bool, is_public: bool
) -> None:  # fmt: skip
    """Raise Unsuitable for options that do not go together."""
    if topic == "" or (is_public and topic is None):
        raise Unsuitable("--topic needs the name of a topic.", "momentum-sync tail --topic room-1")
    if topic is not None and (has_channels or has_state):
        raise Unsuitable("--topic goes with neither --all, --channel nor --state.", "momentum-sync tail --topic room-1")
    if token is None and topic is None and (user is None) != has_channels:
        raise Unsuitable(
            "Neither a user nor a token was given, or both --user and --all or --channel.",
            "Run momentum-sync tail --user <uuid>, or momentum-sync tail --all, or give a --token.",
        )


def _token_maker(user: UUID | None) -> Callable[[], str]:
    settings = read()
    secret = secret_of(settings, "Give a token: --token …, or MOMENTUM_TOKEN.")
    role = Role.service_role if user is None else Role.user
    return lambda: sign(secret, user, role, _TOKENS_LAST, audience=settings.jwt_audience)


def _conditions(conditions: Sequence[str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not name or not equals:
            raise Unsuitable(
                f"--where {condition} is not a condition.", "Write a field and its value, such as --where status=sent"
            )
        wanted[name] = value
    return wanted


class _Wanted(NamedTuple):
    """Events to show.

    Attributes:
        kinds: patterns of their types; any if there are none.
        values: fields that they must have, as text.
    """

    kinds: Sequence[str]
    values: Mapping[str, str]

    def has(self, kind: str, fields: object) -> bool:
        """Return whether an event is to be shown."""
        found: Mapping[str, object] = fields if isinstance(fields, Mapping) else {}
        return (not self.kinds or any(fnmatchcase(kind, each) for each in self.kinds)) and all(
            _text(found.get(name)) == value for name, value in self.values.items()
        )


async def _tail_topic(
    topics: TopicTail, topic: str, wanted: _Wanted, shown: _Json | _Lines, count: int | None
) -> None:  # fmt: skip
    async with aclosing(topics.messages()) as messages:
        async for message in messages:
            # A notice is shown whatever is wanted, and counts for nothing.
            if message.kind:
                if not wanted.has(message.kind, message.fields.get("payload", message.fields.get("state"))):
                    continue
                count = None if count is None else count - 1
            shown.message(topic, message)
            if count == 0:
                return


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


async def _tail(
    url: str,
    token: str | Callable[[], str],
    user: UUID | None,
    channels: Sequence[str],
    state: Path | None,
    wanted: _Wanted,
    shown: _Json | _Lines,
    count: int | None,
) -> None:
    # The client logs and swallows an exception of `on_error`, so a refusal ends the command through a future.
    refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.Event()  # it waits for a connection, which was reported

    def tell(error: ClientError) -> None:
        if isinstance(error, Rejected) and error.status == HTTPStatus.UNAUTHORIZED and not client.channels:
            if not refused.done():  # refused at the first attempt: waiting does not help
                refused.set_exception(Unsuitable(str(error), _REFUSED))
        elif isinstance(error, _PASSING):
            if not waiting.is_set():
                said = f"momentum-sync: {error} Reconnecting with increasing delay."
                print(said, file=sys.stderr, flush=True)
                waiting.set()
        elif not isinstance(error, Ended):
            print(f"momentum-sync: {error}", file=sys.stderr, flush=True)

    try:
        client = Client(
            url,
            token,
            user_id=None if user is None else str(user),
            client_id=f"{TOOL}tail {uuid4()}",
            channels=channels,
            store=None if state is None else FileStore(state),
            on_error=tell,
        )
    except ValueError as error:
        raise Unsuitable(f"{error}.", "--url http://127.0.0.1:8787") from None
    following = asyncio.ensure_future(_follow(client, wanted, shown, count))
    watching = asyncio.ensure_future(_watch(client, waiting))
    done, _ = await asyncio.wait({following, refused}, return_when=asyncio.FIRST_COMPLETED)
    await end(following, watching)
    for one in done:
        one.result()


async def _watch(client: Client, waiting: asyncio.Event) -> None:
    """Report a reconnect, if the disconnect was reported."""
    async for state in client.changes():
        if state.status == "live" and waiting.is_set():
            waiting.clear()
            print("momentum-sync: connected", file=sys.stderr, flush=True)


async def _follow(client: Client, wanted: _Wanted, shown: _Json | _Lines, count: int | None) -> None:
    events = client.events()
    async with client:
        async for one in events:
            if isinstance(one, Resync):
                shown.resync(one)
            elif wanted.has(one.type, one.fields):
                shown.event(one)
                count = None if count is None else count - 1
            if count == 0:
                # Otherwise the next run with the same --state would show this event again.
                client.ack(one)
                return


class _Json:
    """Output for programs."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def event(self, event: Event) -> None:
        self._write({**event.fields, "channel": event.channel, "id": event.id})

    def resync(self, resync: Resync) -> None:
        self._write({"resync": resync.reason, "id": resync.id})

    def message(self, topic: str, message: Message) -> None:
        self._write({"topic": topic, **message.fields})

    def _write(self, value: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, as writing to standard output does."""
        raise BrokenPipeError


class _Lines:
    """Output for people."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, event: Event) -> None:
        line = Text()
        line.append(_clock(event.timestamp), "dim")
        line.append(f"  {event.type:<24}", _COLOURS.get(str(event.fields.get("momentum_state")), "cyan"))
        line.append(f"  {(event.user_id or '-')[:8]}", "bold")
        for name, value in event.fields.items():
            if name not in _PLAIN and value not in (None, {}, ""):
                line.append(f"  {name}=", "dim")
                line.append(_printable(_text(value)))
        self._console.print(line)

    def message(self, topic: str, message: Message) -> None:
        if not message.kind:
            self._console.print(Text(f"── {_printable(message.fields['notice'])} ──", "yellow"))
            return
        fields = message.fields
        line = Text()
        line.append(_clock(datetime.now(UTC).isoformat()), "dim")
        line.append(f"  {_printable(message.kind):<24}", "cyan" if "event" in fields else "green")
        if "key" in fields:
            line.append(f"  {_printable(str(fields['key']))}", "bold")
        content = json.dumps(fields.get("payload", fields.get("state")), ensure_ascii=False)
        line.append(f"  {_printable(content)}")
        self._console.print(line)

    def resync(self, resync: Resync) -> None:
        text = "live" if resync.reason is None else f"events may be missing here: {resync.reason}"
        self._console.print(Text(f"── {text} ──", "dim" if resync.reason is None else "yellow"))


def _clock(timestamp: str) -> str:
    try:
        return datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return "-" * 12


def _printable(text: str) -> str:
    """Return the text without control characters that a terminal would interpret."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
