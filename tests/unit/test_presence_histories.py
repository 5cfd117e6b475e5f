"""Random histories of presence: every client's merged state is that of a model, through joins, changes and losses."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from momentum_sync.wire.phoenix import Version
from tests.unit.realtime_world import World

TOPIC = "realtime:a"
WHO = st.integers(0, 4)
NAMES = st.sampled_from(["a", "b", "c"])


class Client:
    """A client that merges presence as Supabase's do: `syncState` and `syncDiff` of phoenix.js."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.key = ""
        self.name: str | None = None
        self.metas: dict[str, dict[str, Any]] | None = None  # by key: metas by ref; None without the state

    def read(self, answers: list[Any]) -> None:
        """Merge the frames written, and then answers."""
        for frame in [*self.world.written(), *answers]:
            event, payload = (frame["event"], frame["payload"]) if isinstance(frame, dict) else (frame[3], frame[4])
            if event == "presence_state":
                self.metas = {key: by_ref(each) for key, each in payload.items()}
            elif event == "presence_diff":
                assert self.metas is not None, "a diff before the state"
                self._merge(self.metas, payload)

    def _merge(self, held: dict[str, dict[str, Any]], diff: dict[str, Any]) -> None:
        for key, entry in diff["joins"].items():
            assert not held.get(key, {}).keys() & by_ref(entry).keys(), "a meta joined twice"
            held.setdefault(key, {}).update(by_ref(entry))
        for key, entry in diff["leaves"].items():
            for ref in by_ref(entry):
                del held[key][ref]  # fails for a meta that never joined
            if not held[key]:
                del held[key]

    @property
    def present(self) -> dict[str, list[str]]:
        """Return the names under each key."""
        return {key: sorted(each["name"] for each in found.values()) for key, found in (self.metas or {}).items()}


def by_ref(entry: dict[str, Any]) -> dict[str, Any]:
    found = {meta["phx_ref"]: meta for meta in entry["metas"]}
    assert len(found) == len(entry["metas"])
    return found


class Histories(RuleBasedStateMachine):
    """Clients of one topic. Some see its presence."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = World()  # its members are those of all
        self.clients: dict[int, Client] = {}

    @rule(who=WHO, key=st.sampled_from(["k1", "k2"]), watches=st.booleans(), version=st.sampled_from(Version))
    def join(self, who: int, key: str, watches: bool, version: Version) -> None:
        """Join, perhaps again on the same socket: then the earlier presence ends."""
        client = self.clients.get(who)
        if client is None:
            client = self.clients[who] = Client(World(version=version, members=self.owner.members))
        client.read([])
        client.key, client.name, client.metas = key, None, None
        client.read(client.world.join(count=0, presence={"key": key, "enabled": watches}))
        assert (client.metas is not None) is watches

    @rule(who=WHO, name=NAMES)
    def track(self, who: int, name: str) -> None:
        """Be present, perhaps under another name. After that the client sees the presence."""
        if (client := self.clients.get(who)) is not None:
            payload = {"type": "presence", "event": "track", "payload": {"name": name}}
            client.read(client.world.send(TOPIC, "presence", payload))
            client.name = name
            assert client.metas is not None

    @rule(who=WHO)
    def untrack(self, who: int) -> None:
        """Be absent, and go on seeing the others."""
        if (client := self.clients.get(who)) is not None:
            client.read(client.world.send(TOPIC, "presence", {"type": "presence", "event": "untrack"}))
            client.name = None

    @rule(who=WHO, politely=st.booleans())
    def go(self, who: int, politely: bool) -> None:
        """Leave the topic, or lose the socket."""
        if (client := self.clients.pop(who, None)) is not None:
            if politely:
                client.world.send(TOPIC, "phx_leave")
            client.world.session.lost()

    @rule()
    @precondition(lambda self: self.clients)
    def settle(self) -> None:
        """Let the collected changes be sent: all clients that see the presence see the same."""
        self.owner.pass_time()
        wanted: dict[str, list[str]] = {}
        for client in self.clients.values():
            if client.name is not None:
                wanted.setdefault(client.key, []).append(client.name)
        wanted = {key: sorted(names) for key, names in wanted.items()}
        for client in self.clients.values():
            client.read([])
            if client.metas is not None:
                assert client.present == wanted
        assert self.owner.members.present == sum(map(len, wanted.values()))

    def teardown(self) -> None:
        for who in list(self.clients):
            self.go(who, politely=False)
        self.owner.pass_time()
        assert (self.owner.members.topics, self.owner.members.present) == (0, 0), "nothing is left behind"


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestHistories = Histories.TestCase
