"""Pushes notifications that no device has received: calls the app's own function, which sends them by FCM.

    DATABASE_URL=… PUSH_URL=https://<project>.supabase.co/functions/v1/send-push PUSH_KEY=<service key> python worker.py

Several workers share the work. A notification may be pushed more than once: if the function sends it and then fails, or
if a worker dies before it has recorded the result. A failed push is retried with increasing delays and given up after
MOST_ATTEMPTS. With `--once` it exits when nothing is due, for cron.
"""

from __future__ import annotations

import os
import sys
import time

import httpx
import psycopg

MOST_ATTEMPTS = 8
AGAIN_AFTER = "1 minute"  # longer than TIMEOUT_S, so that no other worker repeats a push that is under way
PAUSE_S = 5.0
TIMEOUT_S = 10.0


def push_next(connection: psycopg.Connection[tuple[object, ...]], http: httpx.Client, url: str) -> bool:
    """Push a notification that is due. Return False if there was none."""
    # Committed before the call: while it hangs, no row is locked, and it is due again if this process dies.
    due = connection.execute("select * from public.due_pushes(1, %s)", (AGAIN_AFTER,)).fetchone()
    if due is None:
        return False
    notification_id, user_id, attempts = due
    settled_as = "pushed"
    try:
        asked = {"notification_id": str(notification_id), "user_id": str(user_id)}
        # With this key the function can tell a repetition.
        http.post(url, json=asked, headers={"Idempotency-Key": str(notification_id)}).raise_for_status()
    except httpx.HTTPError as error:
        print(f"notification {notification_id}, attempt {attempts}: {error!r}", file=sys.stderr)
        if int(str(attempts)) < MOST_ATTEMPTS:
            return True
        settled_as = "given up"
    connection.execute(
        "update public.push_outbox set settled_as = %s where notification_id = %s", (settled_as, notification_id)
    )
    return True


def main() -> None:
    """Push until interrupted, or once."""
    once = "--once" in sys.argv[1:]
    url, key = os.environ["PUSH_URL"], os.environ["PUSH_KEY"]
    with httpx.Client(timeout=TIMEOUT_S, headers={"Authorization": f"Bearer {key}"}) as http:
        while True:
            try:
                with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, connect_timeout=5) as connection:
                    while True:
                        if not push_next(connection, http, url):
                            if once:
                                return
                            time.sleep(PAUSE_S)
            except psycopg.OperationalError as error:
                if once:
                    raise
                print(f"the database: {error}".strip(), file=sys.stderr)
                time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
