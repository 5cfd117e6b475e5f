"""The page of the JavaScript SDK, printed from its JSDoc comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^( *)/\*\*(.*?)\*/\n(?:(?= *// )[^\n]*\n)*([^\n]*)", re.MULTILINE | re.DOTALL)
_CLASS = re.compile(r"export class (\w+)(?: extends (\w+))? \{")
_MEMBER = re.compile(r"  (?:async )?(?:(get) )?(\w+)(?: = )?\(([^\n]*)\) (?:=>|\{)")


class Doc(NamedTuple):
    """A JSDoc comment: its text, and its tags with type, name and text each."""

    text: str
    tags: tuple[tuple[str, str, str, str], ...]

    def of(self, tag: str) -> list[tuple[str, str, str]]:
        """Return the tags of one kind."""
        return [(kind, name, text) for each, kind, name, text in self.tags if each == tag]


class Member(NamedTuple):
    """A method, or a getter, whose `arguments` are None."""

    name: str
    arguments: str | None
    doc: Doc


class Class(NamedTuple):
    """An exported class."""

    name: str
    parent: str | None
    doc: Doc
    members: list[Member]


class Shape(NamedTuple):
    """A named type."""

    name: str
    type: str
    doc: Doc


def exported(source: Path) -> list[str]:
    """Return the names that `index.js` and `node.js` export, in their order."""
    names: list[str] = []
    index = (source / "index.js").read_text(encoding="utf-8")
    for listed in re.findall(r"export \{([^}]*)\}", index):
        names += re.findall(r"\w+", listed)
    names += re.findall(r"^export class (\w+)", (source / "node.js").read_text(encoding="utf-8"), re.MULTILINE)
    return names + re.findall(r"@typedef \{import\([^)]*\)\.\w+\} (\w+)", index)


def read(source: Path) -> dict[str, Class | Shape]:
    """Return everything that the SDK's files document, by name."""
    found: dict[str, Class | Shape] = {}
    for path in sorted(source.glob("*.js")):
        current: Class | None = None
        for indent, doc, line in _blocks(path.read_text(encoding="utf-8")):
            kind = _CLASS.match(line)
            member = _MEMBER.match(line)
            named = [(type_, name) for type_, name, _ in doc.of("typedef") if not type_.startswith("import(")]
            if named:
                for type_, name in named:
                    found[name] = Shape(name, type_, doc)
            elif kind and not indent:
                current = found[kind[1]] = Class(kind[1], kind[2], doc, [])
            elif member and current is not None and len(indent) == 2:
                arguments = None if member[1] else ", ".join(_shown(name) for _, name, _ in doc.of("param"))
                current.members.append(Member(member[2], arguments, doc))
    return found


def page(source: Path) -> str:
    """Return the page."""
    known = read(source)
    parts = [
        "# JavaScript SDK", "",
        "What the package exports, with types as in TypeScript. `FileStore` comes from `momentum-sync/node`.",
        "Generated from the comments in `clients/js/src`.", "",
    ]  # fmt: skip
    for name in exported(source):
        thing = known.get(name)
        if isinstance(thing, Shape):
            parts += [f"## {name}", "", thing.doc.text, "", *_list(thing.doc.of("property")), ""]
            parts += [] if thing.type == "object" else [f"`{thing.type}`", ""]
        elif thing is not None:
            parts += [*_class(thing)]
    return "\n".join(parts)


def _class(thing: Class) -> Iterator[str]:
    yield from (f"## {thing.name}", "", thing.doc.text, "")
    if thing.parent:
        yield from (f"Extends `{thing.parent}`.", "")
    for member in thing.members:
        is_constructor = member.name == "constructor"
        title = f"new {thing.name}" if is_constructor else f"{thing.name}.{member.name}"
        if not is_constructor:
            yield from (f"### {title}", "")
        if member.arguments is not None:
            returned = "".join(f": {kind}" for kind, _, _ in member.doc.of("returns"))
            yield from (f"`{title}({member.arguments}){returned}`", "")
        if member.doc.text:
            yield from (member.doc.text, "")
        yield from (*_list(member.doc.of("param")), "")


def _list(tags: list[tuple[str, str, str]]) -> list[str]:
    return [f"- `{_shown(name)}`: `{kind}`{f'; {text}' if text else ''}" for kind, name, text in tags]


def _shown(name: str) -> str:
    """Return `name?` for `[name]`."""
    return f"{name[1:-1]}?" if name.startswith("[") else name


def _blocks(text: str) -> Iterator[tuple[str, Doc, str]]:
    for indent, comment, line in _BLOCK.findall(text):
        yield indent, parse(comment), line


def parse(comment: str) -> Doc:
    """Return the parts of a comment, given without its delimiters."""
    lines = [re.sub(r"^\s*\* ?", "", line).rstrip() for line in comment.strip().splitlines()]
    body = "\n".join(lines)
    text, *tags = re.split(r"(?:^|\n| )@(?=\w+(?:\s|$))", body)
    return Doc(text.strip(), tuple(_tag(tag) for tag in tags))


def _tag(content: str) -> tuple[str, str, str, str]:
    tag, _, rest = content.partition(" ")
    kind = ""
    if rest.startswith("{"):
        end = _closing(rest)
        kind, rest = rest[1:end], rest[end + 1 :].strip()
    name = ""
    if tag in ("param", "property", "typedef"):
        name, _, rest = rest.partition(" ")
    return tag.strip(), " ".join(kind.split()), name.strip(), " ".join(rest.split())


def _closing(text: str) -> int:
    """Return the index of the brace that closes the first one."""
    depth = 0
    for index, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return index
    raise ValueError(f"a brace is not closed: {text[:60]}")
