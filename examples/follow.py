"""Follow a user: every committed change in order, and the state as it is now, also across a restart."""

import asyncio
import os

from momentum_sync import Client, ClientError, FileStore, Resync


async def fresh_token() -> str:  # from your app's sign-in; for a test: momentum-sync token --user <uuid>
    return os.environ["MOMENTUM_TOKEN"]


def report(error: ClientError) -> None:  # the client continues, unless the error is Ended
    print(type(error).__name__, error)


async def main() -> None:
    url, store = os.environ.get("MOMENTUM_URL", "http://127.0.0.1:8787"), FileStore("momentum.json")
    async with Client(url, token=fresh_token, store=store, on_error=report) as client:
        async for event in client.events():  # each event once and in order, across disconnects
            if isinstance(event, Resync):
                print("as of now:", client.state.momentum)
            else:
                print(event.type, event.fields)


asyncio.run(main())
