"""What the options of `mapseek export` mean together."""

from pathlib import Path

from exporter.errors import ExportError
from exporter.export import Exported, export_model, lay_out
from exporter.hub import Report
from exporter.triton import MAX_BATCH, Serving
from inference.artifact import MANIFEST, Precision


def export_for(
    model: str,
    out: Path,
    *,
    precision: str | None,
    revision: str | None,
    name: str | None,
    triton: bool,
    max_batch: int | None,
    instances: int | None,
    report: Report,
) -> Exported:
    """Exports a checkpoint, or lays out for Triton what was exported before.

    Args:
        model: A hub id, a checkpoint's folder or, for Triton, an exported folder.
        out: The folder to make.
        precision: See `export_model`; None is fp32, or whatever the exported folder has.
        revision: See `export_model`.
        name: See `export_model`.
        triton: Whether to write a model repository.
        max_batch: See `Serving`.
        instances: See `Serving`.
        report: Takes one line about each step.

    Raises:
        StartupError: The options do not go together, or the export failed.
    """
    serving = None
    if triton:
        serving = Serving(max_batch=max_batch or MAX_BATCH, instances=instances or 0)
    elif max_batch is not None or instances is not None:
        raise ExportError("--max-batch and --instances are for --layout triton.")
    if serving is None or not (Path(model) / MANIFEST).is_file():
        return export_model(
            model,
            out,
            precision=precision or Precision.FP32,
            revision=revision,
            name=name,
            triton=serving,
            report=report,
        )
    if precision is not None or revision is not None or name is not None:
        raise ExportError(
            f"{model} is exported already: --precision, --revision and --name are for checkpoints."
        )
    return lay_out(Path(model), out, serving)
