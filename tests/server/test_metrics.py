"""The metrics: real numbers after real traffic, under the names that the dashboard uses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from momentum_sync import metrics
from tests.fixtures.postgres import Sql, add_intervention, add_notification, add_score, until_read
from tests.fixtures.server import PATH, SERVICE_KEY, Server, Start, sign

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus-alerts.yml"
DASHBOARD = ROOT / "docs" / "grafana.json"
Samples = dict[tuple[str, str], float]


async def scrape(server: Server) -> Samples:
    """Return each sample's value, by its name and label value."""
    async with server.http(apikey=SERVICE_KEY) as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_what_happened_is_in_the_numbers(server: Server, db: Sql, user: UUID, other: UUID) -> None:
    before = await scrape(server)
    async with server.live(user) as one, server.live(user) as two, server.live(other):
        add_score(db, user)
        add_notification(db, user)
        for client in (one, two):
            while (await client.until("realtime_event"))["event"]["event_type"] != "push_notification":
                pass
        last = one.seen[-1]["event"]["id"]
        during = await scrape(server)
        assert during["momentum_connections", ""] == 3
        assert during["momentum_subscriptions", ""] == 12
        assert during["momentum_channels", ""] == 8
        assert during["momentum_capture_live", ""] == 1
        assert 0 <= during["momentum_capture_lag_seconds", ""] < 5
        assert during["momentum_window_bytes", ""] > 0
    add_intervention(db, user)
    await until_read(db)
    async with server.connect(sign(user), last_event_id=last) as client:
        assert (await client.next())["replayed"] == 1
    async with server.http() as http:
        await http.post("/sync/momentum", json={"user_id": str(user)})
    async with asyncio.timeout(10):
        while (after := await scrape(server))["momentum_connections", ""]:
            await asyncio.sleep(0.02)

    def grew(name: str, label: str = "") -> float:
        return after[name, label] - before[name, label]

    assert grew("momentum_events_total", "momentum_score_created") == 1
    assert grew("momentum_events_total", "cache_invalidation") == 1
    assert grew("momentum_events_total", "push_notification") == 1
    assert grew("momentum_events_total", "other") == 1, "the one of until_read"
    # Three events to two sockets each, three greetings of two messages, a resume of two, and no more.
    assert grew("momentum_frames_sent_total") == 3 * 2 + 3 * 2 + 2
    assert grew("momentum_bytes_sent_total") > 1_000
    assert grew("momentum_commit_to_send_seconds_count") >= 3
    assert 0 <= grew("momentum_commit_to_send_seconds_sum") < 10
    assert grew("momentum_log_append_seconds_count") >= 1
    assert grew("momentum_openings_total", "snapshot") == 3
    assert grew("momentum_openings_total", "resumed") == 1
    assert grew("momentum_resume_events_sum") == 1
    assert grew("momentum_closes_total", "client") == 4
    assert grew("momentum_refusals_total", "unauthenticated") == 1
    assert grew("momentum_failures_total") == 0


async def test_closes_and_refusals_are_counted_by_what_they_are(start: Start, user: UUID) -> None:
    async with start(max_connections=1) as server:
        before = await scrape(server)
        async with server.live(user, client_id="a"), server.connect(sign(user), client_id="b") as second:
            assert (await second.closed())[0] == 4413
        async with server.http(sign(user)) as http:
            await http.post("/sync/momentum", json={"user_id": "x"})
            await http.post("/sync/events", json={"last_event_id": "x"})
        after = await scrape(server)
    for name, label in (
        ("momentum_closes_total", "4413"), ("momentum_refusals_total", "invalid_field"),
        ("momentum_refusals_total", "unknown_id"),
    ):  # fmt: skip
        assert after[name, label] - before[name, label] == 1, label


async def test_the_metrics_are_the_services_unless_they_are_open(start: Start, user: UUID) -> None:
    async with start() as server:
        for token, status in ((None, 401), (sign(user), 403), (sign(user, app_role="admin"), 403), ("x", 401)):
            async with server.http(token) as http:
                answer = await http.get(f"{PATH}/metrics")
                assert (answer.status_code, "error" in answer.json()) == (status, True)
        async with server.http(sign(None, role="service_role")) as http:
            assert (await http.get(f"{PATH}/metrics")).status_code == 200
    async with start(metrics_open=True) as server, server.http() as http:
        assert "momentum_capture_live 1.0" in (await http.get("/metrics")).text


async def test_no_label_takes_what_it_is_given(server: Server, db: Sql, user: UUID) -> None:
    async with server.live(user) as client:
        for number in range(20):
            event = json.dumps({"event_type": f"made up {number}", "user_id": str(user)})
            db.execute("select momentum.publish(array['notifications:' || %s], %s)", (user, event))
        for _ in range(20):
            await client.until("realtime_event")
    samples = await scrape(server)
    assert not [label for _, label in samples if "made up" in label or str(user) in label]
    assert samples["momentum_events_total", "other"] >= 20


@pytest.mark.parametrize("kept", [metrics.EVENTS, metrics.REFUSALS, metrics.CLOSES], ids=lambda kept: kept.name)
def test_a_value_that_is_not_listed_counts_as_other(kept: metrics.Count) -> None:
    kept.add(value="something that nobody listed")
    samples = {sample.labels[next(iter(sample.labels))] for sample in kept.collect().samples}
    assert "something that nobody listed" not in samples
    assert metrics.OTHER in samples


async def test_the_dashboard_asks_for_what_there_is(server: Server) -> None:
    names = {name for name, _ in await scrape(server)}
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found = set(re.findall(r"\b(?:momentum|process)_\w+", target["expr"]))
            assert found, panel["title"]
            asked |= found
            labels = set(re.findall(r"by \((\w+)\)", target["expr"])) - {"le"}
            assert labels <= {"type", "outcome", "code", "reason", "by"}
    assert asked <= names, asked - names
    ours = {
        name for name in names if name.startswith("momentum_") and not name.endswith(("_created", "_sum", "_count"))
    }
    assert ours <= asked, ours - asked


async def test_the_alert_rules_ask_for_what_there_is(server: Server) -> None:
    samples = await scrape(server)
    names = {name for name, _ in samples}
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules = group["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        found = set(re.findall(r"\b(?:momentum|process)_\w+", rule["expr"]))
        assert found <= names, rule["alert"]
        assert found or rule["expr"].startswith("up{"), rule["alert"]
        for name, pattern in re.findall(r'(momentum_\w+)\{\w+=~?"([^"]+)"\}', rule["expr"]):
            known = {label for metric, label in samples if metric == name}
            assert set(pattern.split("|")) <= known, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule.get("for") or "increase(" in rule["expr"], "one bad scrape must not wake anybody"


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        assert "CI" not in os.environ, "CI installs promtool"
        pytest.skip("needs promtool, which CI installs")
    return found


def test_prometheus_raises_the_alerts_when_it_should(promtool: str) -> None:
    for arguments in (("check", "rules", str(ALERTS)), ("test", "rules", str(ROOT / "tests" / "alert_rules.yml"))):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_understands_the_dashboard(promtool: str, tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(expressions)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(expressions)} rules found" in done.stdout


async def test_samples_and_failures_get_a_row_each(start: Start, db: Sql, user: UUID) -> None:
    rows = (
        "select event_type, channel_name, user_id, payload_size > 50, processing_time_ms < 60000, success,"
        " error_message from realtime_event_metrics order by created_at, event_type"
    )
    async with start() as server, server.live(user) as client:
        add_score(db, user)
        db.execute("select pg_logical_emit_message(true, 'momentum_sync', 'no JSON')")
        await client.until("realtime_event")
        assert db.execute(rows).fetchall() == []  # nothing on the path of an event
        add_notification(db, user)
        await client.until("realtime_event")
    found = db.execute(rows).fetchall()
    assert sorted(row for row in found if row[5]) == [
        ("cache_invalidation", "cache_invalidation", user, True, True, True, None),
        ("momentum_score_created", f"momentum_updates:{user}", user, True, True, True, None),
        ("push_notification", f"notifications:{user}", user, True, True, True, None),
    ]
    (failure,) = [row for row in found if not row[5]]
    assert failure[:3] == ("unreadable", "", None)
    assert failure[6].startswith("not an envelope")


async def test_metrics_that_cannot_be_written_stop_nothing(start: Start, db: Sql, user: UUID) -> None:
    db.execute("drop table realtime_event_metrics")
    async with start() as server, server.live(user) as client:
        add_notification(db, user)
        await client.until("realtime_event")
