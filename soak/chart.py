"""A chart of a long run, as SVG: one small panel for each quantity, over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from soak.verdict import Sample

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 720, 90, 150, 20, 30
_MIB = 2**20
_PANELS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("memory, MiB", lambda each: each.rss / _MIB),
    ("open files", lambda each: each.files),
    ("clients", lambda each: each.clients),
    ("retained WAL, MiB", lambda each: each.retained / _MIB),
    ("log, MiB", lambda each: each.log / _MIB),
    ("lag, ms", lambda each: each.lag_ms),
)


def chart(samples: Sequence[Sample]) -> str:
    """Return the chart."""
    height = _TOP + len(_PANELS) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {height + 20}"'
        ' font-family="system-ui, sans-serif" font-size="12" role="img">',
        "<title>Memory, files, WAL and log of a server under load</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    last = max(sample.at for sample in samples)
    for number, (name, value) in enumerate(_PANELS):
        top = _TOP + number * (_HEIGHT + _GAP)
        values = [value(sample) for sample in samples]
        most = max(values) or 1.0
        points = " ".join(
            f"{_LEFT + _WIDTH * sample.at / last:.1f},{top + _HEIGHT * (1 - each / most):.1f}"
            for sample, each in zip(samples, values, strict=True)
        )
        parts += [
            f'<text x="{_LEFT - 10}" y="{top + 12}" text-anchor="end">{name}</text>',
            f'<text x="{_LEFT - 10}" y="{top + 28}" text-anchor="end" fill="#555">up to {most:,.1f}</text>',
            f'<path d="M{_LEFT},{top + _HEIGHT}h{_WIDTH}" stroke="#bbb"/>',
            f'<polyline points="{points}" fill="none" stroke="#0b7285" stroke-width="1.5"/>',
        ]
    parts += [f'<text x="{_LEFT + _WIDTH}" y="{height + 8}" text-anchor="end">{last / 60:.0f} minutes</text>', "</svg>"]
    return "\n".join(parts) + "\n"
