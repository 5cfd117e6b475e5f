"""The measures as a chart: distance to the aims, and growth of the cost with size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from benchmarks.report import Line

_WIDTH = 860
_LABEL = 470
_ROW = 22
_BAR = 12
_LETTERS = 72
_MOST = 3.0  # multiple of the aim at which a bar is cut
_GOOD, _BAD, _INK, _LINE = "#2f855a", "#c05621", "#1a202c", "#a0aec0"


def svg(lines: Sequence[Line]) -> str:
    """Return an SVG document."""
    aimed = [line for line in lines if line.reached is not None]
    sizes = [line for line in lines if line.unit == "µs"]
    frames = [line for line in sizes if line.what.startswith("a frame")]
    events = [line for line in sizes if line not in frames]
    below = [60 + _ROW * len(aimed)]
    for group in (frames, events):
        below.append(below[-1] + (40 + _ROW * len(group) if group else 0))
    height = below[-1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif"'
        f' font-size="12" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        *_aims(aimed, 20),
        *(_costs("a frame", frames, below[0]) if frames else ()),
        *(_costs("an event", events, below[1]) if events else ()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _aims(lines: Sequence[Line], top: int) -> Iterator[str]:
    scale = (_WIDTH - _LABEL - 90) / _MOST
    yield f'<text x="10" y="{top}" font-weight="bold">Measured, by its aim: right of the line is better</text>'
    for index, line in enumerate(lines):
        y = top + 14 + _ROW * index
        how = min(_MOST, _of_aim(line))
        color = _GOOD if line.reached else _BAD
        what = f"{line.what}, beside {line.beside}" if line.beside else line.what
        if len(what) > _LETTERS:
            what = line.what
        yield f'<text x="10" y="{y + 10}">{escape(what[:_LETTERS])}</text>'
        yield f'<rect x="{_LABEL}" y="{y}" width="{how * scale:.1f}" height="{_BAR}" fill="{color}"/>'
        yield f'<text x="{_LABEL + how * scale + 6:.1f}" y="{y + 10}">{_of_aim(line):.2f}</text>'
    x, bottom = _LABEL + scale, top + 14 + _ROW * len(lines)
    yield f'<line x1="{x:.1f}" y1="{top + 8}" x2="{x:.1f}" y2="{bottom}" stroke="{_INK}" stroke-dasharray="3 3"/>'


def _of_aim(line: Line) -> float:
    """Return the measured value as a multiple of its aim, above 1 if it is better."""
    measured = line.value if line.ratio is None else line.ratio
    if line.least is not None:
        return measured / line.least
    assert line.most is not None
    return line.most / measured


def _costs(what: str, lines: Sequence[Line], top: int) -> Iterator[str]:
    most = max(line.value for line in lines)
    scale = (_WIDTH - _LABEL - 90) / most
    yield f'<text x="10" y="{top}" font-weight="bold">What {what} costs the server, in microseconds of its core</text>'
    for index, line in enumerate(lines):
        y = top + 14 + _ROW * index
        yield f'<text x="10" y="{y + 10}">{escape(line.what)}</text>'
        yield f'<rect x="{_LABEL}" y="{y}" width="{line.value * scale:.1f}" height="{_BAR}" fill="{_LINE}"/>'
        yield f'<text x="{_LABEL + line.value * scale + 6:.1f}" y="{y + 10}">{line.value:.1f}</text>'
