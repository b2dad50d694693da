"""Builds a folder of artwork: ``python -m benchmarks.retrieval.fetch_art DIR``.

The pictures are those of some of Debian's packages.

Needs apt and dpkg-deb (``apt-get update`` first). Every picture is free to use under the licence in
its package's copyright file; they are read here to be searched for, and are never shipped. None of
these packages may be trained on: what trains the model is in its model card.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
# Smaller files are buttons and corners.
_LEAST_BYTES = 900
# Of an animation, the frames 0 and 1 are enough.
_FRAME = re.compile(r"(?<=\D)0*([2-9]|\d{2,})$")
_NO_ART = frozenset({"asteroids", "asteroid", "engine", "gui", "spfx", "particles", "cursors"})


@dataclass(frozen=True, slots=True)
class Source:
    """A package and the parts of it that people would hang on a wall.

    Attributes:
        package: Its name in Debian.
        licence: As its copyright file has it, in short.
        what: What kind of pictures.
        parts: Only files below a folder of one of these names; all if empty.
        animated: Files whose names differ in their last number only are one animation.
    """

    package: str
    licence: str
    what: str
    parts: frozenset[str] = frozenset()
    animated: bool = False

    def wants(self, path: Path, size: int) -> bool:
        """Whether a file of this path inside the package is artwork."""
        folders = set(path.parts[:-1])
        return (
            path.suffix.lower() in _SUFFIXES
            and size >= _LEAST_BYTES
            and not folders & _NO_ART
            and (not self.parts or bool(folders & self.parts))
            and not (self.animated and _FRAME.search(path.stem))
        )


_CAMPAIGN = frozenset({"portraits", "story", "maps", "units", "items"})
_WESNOTH = "GPL-2+"

SOURCES = (
    Source(
        "wesnoth-1.16-data", _WESNOTH, "painted portraits, pixel-art units, items",
        _CAMPAIGN | {"attacks", "scenery", "flags", "help", "icons", "village", "castle"},
        animated=True,
    ),
    *(
        Source(
            f"wesnoth-1.16-{name}", _WESNOTH, "painted portraits and stories, units", _CAMPAIGN,
            animated=True,
        )
        for name in ("did", "ei", "httt", "low", "nr", "sota", "thot", "trow", "utbs")
    ),
    Source("tuxpaint-stamps-default", "GPL-2", "photos and drawings, cut out"),
    Source("plasma-workspace-wallpapers", "GPL-2+", "paintings, abstract, photos"),
    Source("mate-backgrounds", "GPL-2+, CC-BY-SA-4.0", "photos, abstract"),
    Source("gnome-backgrounds", "CC-BY-SA-3.0", "abstract, photos"),
    Source("ukui-wallpapers", "CC-BY-SA-3.0", "photos"),
    Source("lomiri-wallpapers-16.04", "CC-BY-4.0, CC-BY-SA", "photos"),
    Source("lomiri-wallpapers-20.04", "CC-BY-4.0, CC-BY-SA", "photos"),
    Source("renpy-demo", "MIT", "anime-like figures and places"),
    Source("renpy-thequestion", "MIT", "anime-like figures and places"),
    Source(
        "pokerth-data", "GPL-2+, public domain, BSD", "playing cards, avatars",
        frozenset({"avatars", "default4c", "default"}),
    ),
    Source(
        "freeorion-data", "CC-BY-SA-3.0, LGPL-2.1+", "paintings, emblems, space",
        frozenset({"encyclopedia", "species", "tech", "building", "nebulae", "misc", "hulls_design",
                   "planets", "galaxy_decoration", "stars_sidepanel", "specials", "policies"}),
    ),
    Source(
        "endless-sky-data", "CC-BY-SA-4.0, public domain", "photos of landscapes, ships, planets",
        frozenset({"land", "scene", "planet", "ship", "outfit", "_menu"}),
    ),
    Source("fillets-ng-data", "GPL-2+", "painted rooms, cartoon figures", frozenset({"images"}),
           animated=True),
    Source(
        "naev-data", "GPL-3, CC-BY-3.0, CC-BY-SA-3.0, public domain",
        "painted portraits, ships, stations",
    ),
    Source("supertux-data", "GPL-3+, GPL-2+", "cartoon figures and scenery", animated=True),
    Source("hedgewars-data", "GPL-2", "cartoon hats, graves, scenery"),
    Source("freedroidrpg-data", "GPL-2+", "painted scenes", frozenset({"backgrounds"})),
    Source("python3-skimage", "BSD-3, public domain", "photos", frozenset({"data"})),
    Source("labelme-examples", "GPL-3+", "photos", frozenset({"JPEGImages", "data_annotated"})),
    Source(
        "palapeli-data", "GPL-2+, CC0", "photos, drawings",
        frozenset({"collection", "backgrounds"}),
    ),
)  # fmt: skip
"""Where the benchmark's artwork comes from."""


def fetch(source: Source, folder: Path) -> int:
    """Download one package and copy its pictures below ``folder/PACKAGE``.

    Returns:
        How many files there are.

    Raises:
        subprocess.CalledProcessError: The package cannot be downloaded or unpacked.
    """
    out = folder / source.package
    if not out.is_dir():
        # The folder appears whole or not at all, so that an interrupted run can be repeated.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            place = Path(scratch)
            _run(["apt-get", "-q", "download", source.package], place)
            (package,) = place.glob("*.deb")
            _run(["dpkg-deb", "-x", package.name, "tree"], place)
            _copy(place / "tree", place / "pictures", source)
            (place / "pictures").rename(out)
    return sum(1 for path in out.rglob("*") if path.is_file())


def _run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  fixed


def _copy(tree: Path, out: Path, source: Source) -> None:
    out.mkdir()
    for path in sorted(tree.rglob("*")):
        inner = path.relative_to(tree)
        if path.is_file() and not path.is_symlink() and source.wants(inner, path.stat().st_size):
            (out / inner.parent).mkdir(parents=True, exist_ok=True)
            shutil.move(path, out / inner)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval.fetch_art",
        description="Build the folder of artwork that `mapseek bench retrieval` draws maps from.",
    )
    parser.add_argument("folder", type=Path, help="where to build it; what is there is kept")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        try:
            count = fetch(source, folder)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.stderr.write(f"{source.package} could not be fetched: {error}\n")
            return 1
        sys.stdout.write(f"{count:6,} files  {source.package} ({source.licence}): {source.what}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
