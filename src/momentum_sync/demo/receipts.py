"""A page of the demo: which notifications the devices of its people have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from uuid import UUID

import psycopg

from momentum_sync.database import queries

_SQL = queries.load(__package__)
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="2"><title>Receipts</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 52rem; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .4rem .5rem .4rem 0; border-bottom: 1px solid #ccc; vertical-align: top }}
td:last-child {{ white-space: nowrap }}
</style>
<h1>Which devices have it?</h1>
<p>Open a person's page, close it again, and see which notifications reached its devices. In SQL:
<code>momentum.receipts(user_id, event_id)</code>.</p>
<table><thead><tr><th>person<th>notification<th>at<th>devices that have it</tr></thead><tbody>
{rows}
</tbody></table></html>
"""


def receipts_page(conninfo: str, people: Sequence[UUID]) -> str:
    """Return the page as HTML, for the newest notifications of these users."""
    with psycopg.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
        return render(connection.execute(_SQL["receipts"], {"people": list(people)}).fetchall())


def render(rows: Iterable[Sequence[object]]) -> str:
    """Return the page for rows of person, title, time, devices that have it, and devices."""
    cells = [
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in (person, title, at, f"{have} of {devices}"))
        for person, title, at, have, devices in rows
    ]
    return _PAGE.format(rows="\n".join(cells))
