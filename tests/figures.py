"""Figures of a checkout's code: `script/figures [CHECKOUT …]`, one column each.

Complexity is cyclomatic: one, and one for each branch, loop, handler, boolean operand and comprehension condition.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert, ast.match_case)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Return all functions and methods, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def complexity(function: Function) -> int:
    """Return the cyclomatic complexity of a function."""
    found = 1
    for node in ast.walk(function):
        if isinstance(node, _BRANCHES):
            found += 1
        elif isinstance(node, ast.BoolOp):
            found += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            found += len(node.ifs)
    return found


def arguments(function: Function) -> int:
    """Return the number of arguments, without `self` and `cls`."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def comments(text: str) -> int:
    """Return the number of comments, without those that address a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return len([comment for comment in found if not re.match(r"#\s*(fmt:|type:|noqa|pragma)", comment)])


def code_lines(text: str) -> int:
    """Return the number of lines that are neither empty, nor a comment, nor part of a docstring."""
    docstrings = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return len(
        [line for at, line in lines if line.strip() and at not in docstrings and not line.strip().startswith("#")]
    )


def figures(checkout: Path) -> dict[str, str]:
    """Return the figures by name."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((checkout / "src").rglob("*.py"))]
    code = sum(map(code_lines, texts))
    every = [function for text in texts for function in functions(ast.parse(text))]
    lengths = sorted((each.end_lineno or each.lineno) - each.lineno + 1 for each in every)
    complex_ = sorted(map(complexity, every))
    given = sorted(map(arguments, every))
    public = [each for each in every if not each.name.startswith("_")]
    sections = [
        each for each in public if re.search(r"^\s*(Args|Raises|Example):", ast.get_docstring(each) or "", re.M)
    ]
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in (checkout / "tests").rglob("*.py") if "clients" not in path.parts
    )
    patched = re.findall(r"""setattr\(\s*[\w.]+,\s*["'](_\w+)["']""", tests)

    constants = sum(len(re.findall(r"^_?[A-Z][A-Z0-9_]+(?:: [^=]+)? = ", text, re.M)) for text in texts)

    def spread(values: list[int]) -> str:
        return f"{statistics.median(values):.0f} / {values[len(values) * 9 // 10]} / {values[-1]}"

    return {
        "files": f"{len(texts)}",
        "lines of code": f"{code:,}",
        "functions": f"{len(every):,}",
        "lines of a function, median / p90 / most": spread(lengths),
        "complexity, median / p90 / most": spread(complex_),
        "arguments, median / p90 / most": spread(given),
        "comments per 100 lines of code": f"{100 * sum(map(comments, texts)) / code:.1f}",
        "public functions with Args, Raises or Example": f"{len(sections) / len(public):.0%}",
        "module constants": f"{constants}",
        "private names patched in tests": f"{len(set(patched))}",
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="script/figures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT], help="clones of this repository")
    checkouts = parser.parse_args().checkouts
    columns = [figures(checkout) for checkout in checkouts]
    print(f"{'':46}" + "".join(f"{checkout.resolve().name:>18}" for checkout in checkouts))
    for name in columns[0]:
        print(f"{name:46}" + "".join(f"{column[name]:>18}" for column in columns))


if __name__ == "__main__":
    main()
