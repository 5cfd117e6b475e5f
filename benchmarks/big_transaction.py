"""One UPDATE of many rows: how the server's memory grows, and when what comes after it arrives.

python -m benchmarks.big_transaction --rows 200000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import jwt
import psycopg
import websockets

from benchmarks.latency import PATH, SECRET, prepare, serving, user
from momentum_sync.database.embedded import Embedded, short_folder

READER = 1  # its events come in the middle of the transaction, and one after it


def resident(pid: int) -> int:
    """Bytes of memory that the process holds now."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("The server is gone.")


async def watch(url: str, conninfo: str, pid: int, rows: int) -> None:
    """The transaction, one event after it, and an admin who reads all of it."""
    admin = jwt.encode(
        {"sub": str(user(0)), "role": "authenticated", "exp": int(time.time()) + 3600,
         "app_metadata": {"role": "admin"}}, SECRET, algorithm="HS256",
    )  # fmt: skip
    plain = jwt.encode({"sub": str(user(READER)), "role": "authenticated", "exp": int(time.time()) + 3600}, SECRET)
    address = url.replace("http", "ws") + PATH
    async with (
        websockets.connect(
            f"{address}?channels=momentum_updates:all", additional_headers={"Authorization": f"Bearer {admin}"}
        ) as everything,
        websockets.connect(address, additional_headers={"Authorization": f"Bearer {plain}"}) as one,
    ):
        before = most = resident(pid)
        began = time.monotonic()

        def write() -> float:
            with psycopg.connect(conninfo, autocommit=True) as connection:
                connection.execute("update public.daily_engagement_scores set momentum_state = 'Rising'")
                committed = time.monotonic()
                connection.execute(
                    "update public.daily_engagement_scores set final_score = 1 where user_id = %s", (user(READER),)
                )
                return committed

        writing = asyncio.ensure_future(asyncio.to_thread(write))
        after = asyncio.ensure_future(until_score(one, 1))
        count = 0
        while count < rows + 1:
            message = json.loads(await asyncio.wait_for(everything.recv(), 300))
            count += message["type"] == "realtime_event" and message["event"]["event_type"] == "momentum_score_updated"
            if count % 1000 == 0:
                most = max(most, resident(pid))
        read = time.monotonic()
        committed = await writing
        came = await after
    print(f"{rows:,} rows in one UPDATE, {2 * rows:,} events; commit after {committed - began:.1f} s")
    print(f"  the event after it reached its user {came - committed:.1f} s after the commit")
    print(
        f"  an admin had read all {rows:,} of its channel {read - committed:.1f} s after the commit, never disconnected"
    )
    print(f"  resident memory of the server: {before / 2**20:.0f} MiB before, {most / 2**20:.0f} MiB at most")


async def until_score(socket: websockets.ClientConnection, score: float) -> float:
    """When the event with this score came."""
    while True:
        message = json.loads(await asyncio.wait_for(socket.recv(), 300))
        if message["type"] == "realtime_event" and message["event"].get("final_score") == score:
            return time.monotonic()


def main() -> None:
    """Reads the command line and makes one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows, each of a user of its own (200000)")
    given = parser.parse_args()
    with short_folder() as folder, Embedded(folder) as embedded:
        prepare(embedded.conninfo, given.rows)
        with psycopg.connect(embedded.conninfo, autocommit=True) as connection:
            connection.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots")
        with serving(embedded.conninfo, folder) as (url, pid):
            asyncio.run(watch(url, embedded.conninfo, pid, given.rows))


if __name__ == "__main__":
    main()
