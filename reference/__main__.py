"""Writes the pages of the documentation site into a folder, for MkDocs: `python -m reference build/docs`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from reference import pages
from reference.links import rewritten

ROOT = Path(__file__).parents[1]


def write(folder: Path) -> None:
    """Write all pages, replacing the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source, target in pages.WRITTEN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        (folder / target).write_text(rewritten(text, source, pages.WRITTEN, ROOT), encoding="utf-8")
    for image in (ROOT / "docs").iterdir():
        if image.suffix in (".png", ".svg", ".json"):
            shutil.copy(image, folder)
    for target, make in pages.PRINTED.items():
        (folder / target).write_text(make(), encoding="utf-8")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="python -m reference", description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
