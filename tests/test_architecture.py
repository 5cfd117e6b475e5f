"""The rules of ARCHITECTURE.md, held."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from pathlib import Path

import pytest

from momentum_sync.eventlog.status import CAPTURE_TRANSITIONS
from momentum_sync.gateway.connection_states import CONNECTION_TRANSITIONS, DELIVERY_TRANSITIONS
from momentum_sync.sdk.protocol import CLIENT_TRANSITIONS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "momentum_sync"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if not path.endswith("__init__.py")]

# ○ in ARCHITECTURE.md: no sockets, no SQL, no clock, no random numbers.
PURE = re.findall(
    r"^\s*([\w/]+\.py) +○", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").replace("`", ""), re.MULTILINE
)
IO = {
    "asyncio", "fastapi", "http", "httpx", "os", "psycopg", "psycopg_pool", "random", "secrets", "select", "signal",
    "socket", "starlette", "subprocess", "threading", "time", "urllib", "uvicorn", "uvloop", "websockets",
}  # fmt: skip
CLOCKS = {"now", "today", "utcnow", "uuid1", "uuid4", "time", "monotonic", "perf_counter"}
ENDS = {"capture", "gateway"}


def tree(path: str) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def imports(path: str) -> Iterator[str]:
    """Yield everything that a file imports, by full name, at the top or within a function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: str) -> set[str]:
    """Return the parts of the package that a file imports: `eventlog`, `errors`, …"""
    return {name.split(".")[1] for name in imports(path) if name.startswith("momentum_sync.")}


def test_architecture_md_says_which_files_are_pure() -> None:
    assert len(PURE) >= 15
    assert set(PURE) <= set(MODULES)


@pytest.mark.parametrize("path", PURE)
def test_a_pure_file_imports_no_io_and_asks_neither_clock_nor_chance(path: str) -> None:
    # Its defaults depend on the user that runs it, and files that it names are checked at once.
    allowed = {"os"} if path == "settings.py" else set()
    used = {name.split(".")[0] for name in imports(path) if not name.startswith("urllib.parse.")}
    assert used & IO <= allowed
    assert "observe" not in ours(path)
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    # A clock that the caller passes in does not count.
    asked = [call for call in calls if isinstance(call, ast.Attribute) and ast.unparse(call.value) != "services"]
    assert not {call.attr for call in asked} & CLOCKS


@pytest.mark.parametrize("path", PURE)
def test_a_pure_file_imports_only_pure_files_of_ours(path: str) -> None:
    for name in imports(path):
        if not name.startswith("momentum_sync."):
            continue
        parts = name.split(".")[1:]
        candidates = ["/".join(parts) + ".py", "/".join(parts[:-1]) + ".py"]
        found = [candidate for candidate in candidates if candidate in MODULES]
        package = "/".join([*parts[:-1], "__init__.py"])
        if not found and package in FILES:  # it has names of pure modules only
            test_a_pure_file_imports_only_pure_files_of_ours(package)
            continue
        assert found, name
        assert found[0] in PURE, f"{path} imports {found[0]}"


ENGINE = ("capture", "eventlog", "identity", "gateway", "wire")
"""Parts that serve any application."""


@pytest.mark.parametrize("path", FILES)
def test_imports_run_from_both_ends_to_the_log_and_from_the_domain_to_the_engine(path: str) -> None:
    part = path.split("/")[0].removesuffix(".py")
    needs = ours(path)
    if part in ("server", "serving", "worker", "workers", "token_settings", "cli", "doctor", "__main__"):
        return
    assert "settings" not in needs or part == "settings"
    assert not needs & {"server", "cli", "lifecycle"}
    if part == "lifecycle":
        return
    if part in ENGINE:
        assert "domain" not in needs
    if part == "wire":
        assert needs <= {"wire", "errors"}
    elif part == "sdk":
        assert needs <= {"sdk", "wire", "errors", "tasks", "states", "domain", "version"}
        assert {name for name in imports(path) if name.startswith("momentum_sync.domain")} <= {
            f"momentum_sync.domain.messages{rest}" for rest in ("", *(f".{name}" for name in MESSAGE_NAMES))
        }
    elif part in ENDS:
        assert not needs & (ENDS - {part})
    elif part in ("eventlog", "database", "identity"):
        assert not needs & ENDS
    if part == "demo":
        assert needs <= {"database", "demo", "observe"}


MESSAGE_NAMES = [
    node.name for node in tree("domain/messages.py").body if isinstance(node, ast.ClassDef)
] + ["EVENTS", "PROTOCOL", "SERVER_MESSAGES"]  # fmt: skip

# Names that only this app has; general ones such as `user_id` and `status` are allowed.
DOMAIN_NAMES = re.compile(
    r"daily_engagement_scores|coach_interventions|momentum_notifications|realtime_event_metrics|momentum_state\b|"
    r"final_score|score_date|trigger_reason|intervention|notification_(?:id|type)|momentum_updates|cache_invalidation|"
    r"momentum_grant|momentum_may_act_for"
)
KNOWN = {
    # The server writes the app's table of metrics for every application that it serves.
    "eventlog/event_metrics.py", "eventlog/samples.py", "eventlog/queries.sql", "eventlog/schema.sql",
    # A database is migrated for the app before it is used; the schema's owner is the owner of its first table.
    "capture/preflight.py", "capture/queries.sql", "eventlog/receipts.sql",
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    sorted(
        path.relative_to(PACKAGE).as_posix()
        for part in ENGINE
        for path in (PACKAGE / part).rglob("*")
        if path.suffix in (".py", ".sql")
    ),
)
def test_the_engine_names_no_table_column_or_channel_of_the_app(path: str) -> None:
    if path not in KNOWN:
        assert DOMAIN_NAMES.findall((PACKAGE / path).read_text(encoding="utf-8")) == []


TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("title", "transitions"),
    [
        ("eventlog/status: CaptureState", CAPTURE_TRANSITIONS),
        ("gateway/connection_states: ConnectionState", CONNECTION_TRANSITIONS),
        ("gateway/connection_states: DeliveryState", DELIVERY_TRANSITIONS),
        ("sdk/protocol: ClientStatus", CLIENT_TRANSITIONS),
    ],
)
def test_architecture_md_draws_the_states(title: str, transitions: Mapping[Enum, Set[Enum]]) -> None:
    table = re.split(rf"\(`{title}`[^)]*\)[^:]*:", TEXT)[1].split("|---|---|")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.strip().splitlines()]
    drawn = {state: set(filter(None, map(str.strip, after.split(",")))) for state, after in rows}
    assert drawn == {state.value: {after.value for after in then} for state, then in transitions.items()}


def test_the_javascript_client_has_the_same_states() -> None:
    source = (ROOT / "clients" / "js" / "src" / "protocol.js").read_text(encoding="utf-8")
    table = source.split("const TRANSITIONS = {")[1].split("};")[0]
    drawn = {state: set(re.findall(r'"(\w+)"', after)) for state, after in re.findall(r"(\w+): \[(.*?)\]", table)}
    assert drawn == {state.value: {after.value for after in then} for state, then in CLIENT_TRANSITIONS.items()}


@pytest.mark.parametrize(
    "named", sorted(set(re.findall(r"`(\w+/[\w/]+): (\w+(?:\.\w+)?)`", TEXT))), ids=lambda pair: ": ".join(pair)
)
def test_what_architecture_md_names_exists(named: tuple[str, str]) -> None:
    module = importlib.import_module("momentum_sync." + named[0].replace("/", "."))
    found: object = module
    for part in named[1].split("."):
        found = getattr(found, part)
    assert found is not None


def test_the_witness_and_the_checker_of_the_faults_know_nothing_of_ours() -> None:
    for name, allowed in (
        ("witness", {"faults", "psycopg", "re", "dataclasses", "datetime"}),
        ("checker", {"dataclasses"}),
    ):
        parsed = ast.parse((ROOT / "faults" / f"{name}.py").read_text(encoding="utf-8"))
        used = {node.module or "" for node in ast.walk(parsed) if isinstance(node, ast.ImportFrom)}
        used |= {alias.name for node in ast.walk(parsed) if isinstance(node, ast.Import) for alias in node.names}
        assert {module.split(".")[0] for module in used} <= allowed | {"__future__", "collections"}


def test_architecture_md_names_every_module_and_none_that_is_not_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\s*([\w/]+\.(?:py|sql|js|html|css))\b", text, re.MULTILINE))
    there = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.suffix in {".py", ".sql", ".js", ".html", ".css"} and path.name not in {"__init__.py", "__main__.py"}
    }
    there.add("cli/__init__.py")
    assert named | {"cli/__init__.py"} == there


def lines(node: ast.AST) -> int:
    """Return the length of a function or file in lines, without docstrings (of fields, too)."""
    count = 0
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        assert node.end_lineno is not None
        count = node.end_lineno - node.lineno + 1
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            for place, statement in enumerate(inner.body):
                # The first statement, or the one after a field.
                documents = place == 0 or isinstance(inner.body[place - 1], ast.AnnAssign)
                if (
                    documents
                    and isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                ):
                    assert statement.end_lineno is not None
                    count -= statement.end_lineno - statement.lineno + 1
    return count


@pytest.mark.parametrize("path", FILES)
def test_no_file_over_400_lines_and_no_function_over_50(path: str) -> None:
    parsed = tree(path)
    code = (PACKAGE / path).read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if not line.lstrip().startswith("#")]) + lines(parsed) <= 400
    for node in ast.walk(parsed):
        # The options of a command document it, so they are left out like a docstring.
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and path != "cli/serve.py":
            assert lines(node) <= 50, f"{path}: {node.name}"


@pytest.mark.parametrize("path", sorted((ROOT / "clients" / "js" / "src").glob("*.js")), ids=lambda path: path.name)
def test_no_file_of_the_javascript_sdk_over_400_lines(path: Path) -> None:
    code = re.sub(r"/\*\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("//")]) <= 400


@pytest.mark.parametrize("path", FILES)
def test_every_public_thing_says_what_it_is(path: str) -> None:
    parsed = tree(path)
    if not path.endswith("__init__.py") or parsed.body:
        assert ast.get_docstring(parsed), path
    for node in parsed.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef) and path == "errors.py":
                continue  # drawn as a tree at the top of the file
            assert ast.get_docstring(node), f"{path}: {node.name}"


def test_no_word_for_what_is_put_off() -> None:
    for path in FILES:
        text = (PACKAGE / path).read_text(encoding="utf-8")
        assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError|noqa|type: ignore)\b", text), path


@pytest.mark.parametrize("path", [path for path in FILES if path != "tasks.py"])
def test_a_task_is_ended_by_tasks_end(path: str) -> None:
    """A cancellation may be lost, so only `tasks.end` cancels tasks. Timers may be cancelled directly."""
    source = (PACKAGE / path).read_text(encoding="utf-8")
    for name in re.findall(r"\b(\w+)\.cancel\(\)", source):
        timer = re.search(
            rf"\b{name}\b[^\n]* = [^\n]*call_(?:later|at)\(|for {name} in \((?:self\._\w+(?:, )?)+\)", source
        )
        nobody_waits = (path, name) in {("gateway/websocket.py", "_opening"), ("sdk/callbacks.py", "task")}
        assert timer or nobody_waits, f"{path}: {name}.cancel()"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=str)
def test_tests_import_nothing_from_each_other(path: Path) -> None:
    """Code that two tests share is a fixture, or a function in `tests/fixtures`."""
    found = re.findall(r"^(?:from|import) (tests\.(?:\w+\.)*test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == []


def test_no_module_keeps_state_that_outlives_its_server() -> None:
    """State of a process is shared by every server and client in it, and by every test."""
    kept = {"metrics.py", "sdk/callbacks.py"}  # process metrics; references to tasks until they end
    mutable = ("[]", "{}", "set()", "dict()", "list()", "deque(", "defaultdict(", "WeakSet(", "WeakKeyDictionary(")
    found = [
        f"{path}:{node.lineno}"
        for path in sorted(set(MODULES) - kept)
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        if ast.unparse(node.value).split(".")[-1].startswith(mutable)
        if not ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target).isupper()
    ]
    assert not found
    assert not [path for path in MODULES for node in ast.walk(tree(path)) if isinstance(node, ast.Global)]


def test_no_port_is_chosen_before_a_server_holds_it() -> None:
    """Another program may take it meanwhile, and answer in place of the server: see `faults.listening`."""
    chosen = re.compile(r'"--port", (?!"0"|"99999")')
    # A port that a socket of the test still holds; a demo that is started again where its pages expect it.
    held = {"tests/server/test_cli.py", "tests/fixtures/demo.py"}
    for folder in ("tests", "faults", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            assert name in held or path == Path(__file__) or not chosen.search(path.read_text()), name
