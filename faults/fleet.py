"""Captures and gateways as processes of their own, a NATS server, and the network between them, with faults."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx

from faults.database import Database
from faults.http_client import http_client
from faults.listening import start_server
from faults.nemesis import FAULTS, Nemesis, Servers
from faults.proxy import Proxy
from momentum_sync.eventlog.nats_server import NatsServer

_GATEWAYS = 3
_CAPTURES = 2
_ROOT = Path(__file__).resolve().parents[1]

FLEET_FAULTS = {
    **FAULTS, "kill -9 of capture": 4, "capture paused": 3, "NATS killed": 3, "NATS paused": 3, "NATS cut": 3,
    "NATS dead": 2, "NATS slow": 2,
}  # fmt: skip
"""Faults and their weights with several gateways; `server` stands for a gateway."""


class Fleet(Servers):
    """Two captures, of which one waits, and three gateways, over which the proxy spreads the clients."""

    captures: dict[int, subprocess.Popen[bytes]]
    broker: NatsServer
    network: Proxy

    async def start_all(self, folder: Path) -> None:
        """Start everything, and wait until all gateways are live."""
        nats = folder / "nats"
        nats.mkdir(mode=0o700)
        self.broker = NatsServer(nats)
        await self.broker.start()
        self.network = Proxy(websockets=False)
        self.network.ports = [self.broker.port]
        await self.network.start()
        self._environment["MOMENTUM_NATS_URL"] = f"nats://{self.broker.token}@127.0.0.1:{self.network.port}"
        self.captures = {}
        for _ in range(_CAPTURES):
            await self.start_capture()
        for _ in range(_GATEWAYS):
            await self.start()
        for port in self.processes:
            await self.until(port, "live")

    async def start(self) -> int:
        """Start a gateway. Return its port."""
        port = await self._start("gateway", self.processes)
        self._proxy.ports.append(port)
        return port

    async def start_capture(self) -> int:
        """Start a capture. Return its port."""
        return await self._start("capture", self.captures)

    async def _start(self, role: str, processes: dict[int, subprocess.Popen[bytes]]) -> int:
        process, port = await start_server(
            self._program, environment={**self._environment, "MOMENTUM_ROLE": role}, folder=_ROOT, log=self._log,
            seconds=self.ready,
        )  # fmt: skip
        processes[port] = process
        return port

    async def capturing(self) -> int:
        """Return the port of the capture that reads the slot; of any, if none does."""
        async with http_client(2.0) as http:
            for port in self.captures:
                with suppress(httpx.HTTPError):
                    health = (await http.get(f"http://127.0.0.1:{port}/sync/health")).json()
                    if health["capture"]["state"] == "live":
                        return port
        return next(iter(self.captures))

    async def stop(self) -> None:
        """Kill everything."""
        for process in (*self.captures.values(), *self.processes.values()):
            process.kill()
            await asyncio.to_thread(process.wait, 30)
        await self.network.stop()
        await self.broker.stop()

    def ask(self) -> None:
        """Have every process log the places at which its tasks wait."""
        super().ask()
        for process in self.captures.values():
            process.send_signal(signal.SIGUSR1)


def nemesis_of(servers: Servers, database: Database, proxy: Proxy, chance: Random) -> Nemesis:
    """Return the fault injector for these servers."""
    return (
        FleetNemesis(servers, database, proxy, chance) if isinstance(servers, Fleet)
        else Nemesis(servers, database, proxy, chance)
    )  # fmt: skip


class FleetNemesis(Nemesis):
    """Injects faults where there are several gateways."""

    def __init__(self, fleet: Fleet, database: Database, proxy: Proxy, chance: Random) -> None:
        super().__init__(fleet, database, proxy, chance)
        self._fleet = fleet
        more: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9 of capture": self.kill_capture,
            "capture paused": self.pause_capture,
            "NATS killed": self.kill_broker,
            "NATS paused": self.pause_broker,
            "NATS cut": self.cut_broker,
            "NATS dead": self.lose_broker,
            "NATS slow": self.slow_broker,
        }
        self._done_by |= more
        self.menu = FLEET_FAULTS

    def _gateway(self) -> int:
        return self._chance.choice(sorted(self._fleet.processes))

    async def kill_server(self) -> None:
        await self._fleet.end(self._gateway(), signal.SIGKILL)
        await self._fleet.start()

    async def pause_server(self) -> None:
        await self._pause(self._fleet.processes[self._gateway()].pid)

    async def roll(self) -> None:
        """Replace a gateway by another: its clients are closed in batches, and resume elsewhere."""
        new = await self._fleet.start()
        old = self._chance.choice([port for port in sorted(self._fleet.processes) if port != new])
        await self._fleet.end(old, signal.SIGTERM)

    async def restore_alone(self) -> None:
        await self.restore()

    async def kill_capture(self) -> None:
        port = await self._fleet.capturing()
        process = self._fleet.captures.pop(port)
        process.kill()
        await asyncio.to_thread(process.wait, 60)
        await self._fleet.start_capture()

    async def pause_capture(self) -> None:
        port = await self._fleet.capturing()
        await self._pause(self._fleet.captures[port].pid)

    # NATS, and the network between it and the processes

    async def kill_broker(self) -> None:
        await self._fleet.broker.stop(signal.SIGKILL)
        await asyncio.sleep(self._chance.uniform(0.0, 4.0))
        await self._fleet.broker.start()

    async def pause_broker(self) -> None:
        await self._pause(self._fleet.broker.pid)

    async def cut_broker(self) -> None:
        self._fleet.network.cut(self._picks, 0.6)

    async def lose_broker(self) -> None:
        """Make connections half-open: sent data is lost, and no side gets an error."""
        self._fleet.network.go_dead(self._picks, 0.5)

    async def slow_broker(self) -> None:
        self._fleet.network.delay = self._chance.uniform(0.001, 0.05)
        try:
            await asyncio.sleep(self._chance.uniform(1.0, 4.0))
        finally:
            self._fleet.network.delay = 0.0
