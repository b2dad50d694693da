"""`mapseek export`: from a hub id or a checkpoint folder to a verified model folder."""

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from exporter.errors import ExportError
from exporter.hub import Report, locate
from exporter.staging import check_replaceable, staged
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
    check_replaceable(out)
    source = locate(model, revision=revision, report=report)
    report("Loading PyTorch and Optimum")
    from exporter.build import build  # noqa: PLC0415 (seconds; what can fail before it, has)

    with staged(out) as folder:
        build(
            source,
            folder,
            name=name or source.name,
            license_id=source.license if license_id is None else license_id,
            precision=precision,
            thresholds=thresholds,
            report=report,
        )
    artifact = Artifact.load(out)
    size_bytes = sum(path.stat().st_size for path in out.iterdir())
    return Exported(artifact=artifact, size_bytes=size_bytes, elapsed_s=time.monotonic() - started)


def _check_libraries() -> None:
    """Raises for the first that is missing: better now than after a download."""
    for name in _LIBRARIES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
