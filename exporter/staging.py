"""A folder that appears whole or not at all.

Everything is written into a hidden sibling, `.NAME.partial-XXXXXXXX`, and renamed at the end. Its
writer holds a lock on that sibling for as long as it lives, so the next run can tell what a killed
one left behind from what another one is still writing, and removes only the former.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from exporter.errors import ExportError
from inference.artifact import MANIFEST, Manifest

_PARTIAL: Final = "partial"
_FORMER: Final = "former"
# A full disk, a full quota, a file-size limit: all are cured by room.
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


Files = Callable[[Manifest], AbstractSet[str]]
"""Which files a folder with this manifest holds, relative to it."""


def artifact_files(manifest: Manifest) -> AbstractSet[str]:
    """The files of a model folder, as the server loads it."""
    return {MANIFEST, *manifest.sha256}


@contextmanager
def staged(out: Path, files: Files = artifact_files) -> Iterator[Path]:
    """Gives an empty folder to write into, and puts it in place of `out` at the end.

    Whatever ends the block early (an error, Ctrl-C) removes the folder and leaves `out` as it was.

    Args:
        out: Where the folder shall lie. It may hold an older artifact, or nothing.
        files: What an artifact holds; a model folder's, unless told otherwise.

    Yields:
        The folder to write into, on the same file system as `out`.

    Raises:
        ExportError: `out` holds something else than an artifact, or the disk is full.
    """
    out = out.absolute()
    check_replaceable(out, files)
    with _disk_errors(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            _clean_up(out, files)
            partial = Path(tempfile.mkdtemp(prefix=_prefix(out, _PARTIAL), dir=out.parent))
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            raise ExportError(f"{out} cannot be written: {error.strerror}.") from error
    lock = _lock(partial)
    try:
        with _disk_errors(out):
            yield partial
            _flush(partial)
            check_replaceable(out, files)
            _swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest; to be done last, since it says that the folder is complete.

    Args:
        folder: Where all other files lie already.
        manifest: What they are.
    """
    text = manifest.model_dump_json(indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_replaceable(out: Path, files: Files = artifact_files) -> None:
    """Refuses to replace what no export has written.

    Args:
        out: Missing, an empty folder, or an artifact without foreign files.
        files: What an artifact holds.

    Raises:
        ExportError: It is something else.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise ExportError(f"{out} is no folder: choose another one.")
    found = {path.name for path in out.iterdir()}
    if not found:
        return
    if MANIFEST not in found:
        raise ExportError(
            f"{out} holds files but no exported model, and is left alone: choose another folder."
        )
    try:
        manifest = Manifest.model_validate_json((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise ExportError(
            f"{out / MANIFEST} is not an exported model's, so {out} is left alone: "
            "choose another folder."
        ) from None
    own = {path for file in files(manifest) for path in (file, *map(str, Path(file).parents))}
    foreign = sorted(_everything(out) - own)
    if foreign:
        raise ExportError(
            f"{out} holds {foreign[0]} beside an exported model, which replacing it would delete: "
            "move it away or choose another folder."
        )


def _everything(folder: Path) -> set[str]:
    """Files and folders below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _swap(partial: Path, out: Path) -> None:
    """Puts the new folder in place; the older artifact goes only once the new one is there."""
    former = None
    if out.exists() and any(out.iterdir()):
        former = Path(tempfile.mkdtemp(prefix=_prefix(out, _FORMER), dir=out.parent))
        out.rename(former)
    try:
        partial.chmod(0o755)  # mkdtemp makes it private
        partial.rename(out)
    except BaseException:
        if former is not None:
            former.rename(out)
        raise
    _sync(out.parent)
    if former is not None:
        shutil.rmtree(former, ignore_errors=True)


def _clean_up(out: Path, files: Files) -> None:
    """Removes what killed runs left, and takes back an artifact that one had set aside."""
    for former in out.parent.glob(_prefix(out, _FORMER) + "*"):
        if not out.exists() and _is_whole(former, files):
            former.rename(out)
        else:
            shutil.rmtree(former, ignore_errors=True)
    for partial in out.parent.glob(_prefix(out, _PARTIAL) + "*"):
        lock = _lock(partial)
        if lock is not None:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def _is_whole(folder: Path, files: Files) -> bool:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return all((folder / file).is_file() for file in files(manifest))


def _prefix(out: Path, kind: str) -> str:
    return f".{out.name}.{kind}-"


def _lock(folder: Path) -> int | None:
    """Locks a folder for this process; the system unlocks it when the process ends, however."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _flush(folder: Path) -> None:
    """Brings the files to the disk, so that a power cut cannot leave a manifest of empty files."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Says in a sentence that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ExportError(
            f"The disk is full: {out} could not be written. Free some room and export again."
        ) from error
