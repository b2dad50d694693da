"""`mapseek export`: from a hub id or a checkpoint folder to a verified model folder."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from exporter.errors import ExportError
from exporter.hub import Report, locate
from exporter.staging import artifact_files, check_replaceable, staged
from exporter.triton import Serving, repository_files, write
from inference.artifact import Artifact, Precision, Thresholds

# Of the exporter extra, which most installations lack.
_LIBRARIES: Final = ("torch", "transformers", "optimum", "huggingface_hub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export.

    Attributes:
        artifact: The folder in its place.
        size_bytes: Of all its files.
        elapsed_s: Seconds that it took, a download included.
    """

    artifact: Artifact
    size_bytes: int
    elapsed_s: float


def export_model(
    model: str,
    out: Path,
    *,
    precision: Precision | str = Precision.FP32,
    revision: str | None = None,
    name: str | None = None,
    license_id: str | None = None,
    thresholds: Thresholds | None = None,
    triton: Serving | None = None,
    report: Report = lambda _line: None,
) -> Exported:
    """Exports a CLIP checkpoint to a folder that the server loads.

    The folder appears whole or not at all; an artifact that lay there before is replaced only by a
    verified one.

    Args:
        model: A folder with a transformers checkpoint, or an id on the Hugging Face hub.
        out: The folder to make.
        precision: "fp32", "fp16" or "int8".
        revision: A branch, tag or commit on the hub; its main branch by default.
        name: What the manifest shall call the model: by default the id or the folder's name.
        license_id: The checkpoint's licence: by default what its model card says.
        thresholds: Decision points on the cosine similarity, where they were measured.
        triton: Write a model repository for Triton instead of a folder for mapseek's server.
        report: Takes one line about each step.

    Returns:
        What was made.

    Raises:
        ExportError: It could not be made. The message says why, and what to do.
        ModuleNotFoundError: The exporter extra is not installed.
    """
    started = time.monotonic()
    try:
        precision = Precision(precision)
    except ValueError:
        choices = ", ".join(Precision)
        raise ExportError(
            f"There is no precision {precision!r}: choose one of {choices}."
        ) from None
    _check_libraries()
    files = artifact_files if triton is None else repository_files
    check_replaceable(out, files)
    source = locate(model, revision=revision, report=report)
    report("Loading PyTorch and Optimum")
    from exporter.build import build  # noqa: PLC0415 (seconds; what can fail before it, has)

    with staged(out, files) as folder, _workplace(folder, triton) as place:
        manifest = build(
            source,
            place,
            name=name or source.name,
            license_id=source.license if license_id is None else license_id,
            precision=precision,
            thresholds=thresholds,
            report=report,
        )
        if triton is not None:
            report("Writing the model repository")
            write(Artifact(folder=place, manifest=manifest), folder, triton)
    artifact = Artifact.load(out) if triton is None else Artifact(folder=out, manifest=manifest)
    return _exported(artifact, started)


def lay_out(model: Path, out: Path, serving: Serving) -> Exported:
    """Writes a model repository for Triton from a folder that was exported before.

    The repository appears whole or not at all.

    Args:
        model: The exported folder.
        out: The repository to make.
        serving: What Triton is told.

    Raises:
        StartupError: The folder is no exported model, or the repository cannot be written.
    """
    started = time.monotonic()
    artifact = Artifact.load(model)
    with staged(out, repository_files) as folder:
        write(artifact, folder, serving)
    return _exported(Artifact(folder=out, manifest=artifact.manifest), started)


@contextmanager
def _workplace(folder: Path, triton: Serving | None) -> Iterator[Path]:
    """Where to build: the staged folder, or for Triton one in it that does not stay."""
    if triton is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=folder) as work:
        yield Path(work)


def _exported(artifact: Artifact, started: float) -> Exported:
    files = (path for path in artifact.folder.rglob("*") if path.is_file())
    size_bytes = sum(path.stat().st_size for path in files)
    return Exported(artifact=artifact, size_bytes=size_bytes, elapsed_s=time.monotonic() - started)


def _check_libraries() -> None:
    """Raises for the first that is missing: better now than after a download."""
    for name in _LIBRARIES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
