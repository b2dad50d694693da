"""`mapseek bench gpu`: the model against the card, the server against the model, unattended.

Every step is a process of its own, and its result a file in the report's folder. A step that fails
is told and left behind; a run that was stopped goes on after the last step that is there.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.steps import Step, steps
from benchmarks.machine import Provider, this_machine
from benchmarks.report import Cell, Progress, Report, Table, Target
from inference.artifact import Artifact

# What a hanging step may take, in seconds.
_LONGEST_STEP_S = 1800.0
_MIN_OF_MODEL = 0.9
_WIDTH = 132


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """What to measure.

    Attributes:
        model: The model folder.
        providers: onnxruntime providers; `cpu` alone is a rehearsal.
        out: Folder of the report.
        rounds: How often what is measured in rounds is measured.
        seconds: How long each measurement takes.
        batches: Batch sizes of the model; the largest is the server's, too.
        gflop: Arithmetic of one image, in Gflop.
    """

    model: Path
    providers: tuple[Provider, ...]
    out: Path
    rounds: int = 3
    seconds: float = 3.0
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    gflop: float = 8.8


def bench_gpu(options: GpuOptions, progress: Progress) -> Report:
    """Runs every step that has no result yet, and reports; Ctrl-C ends it with what there is.

    Raises:
        StartupError: The model folder is none.
    """
    machine = this_machine()
    artifact = Artifact.load(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    told = options.out / "options.json"
    told.write_text(
        json.dumps(
            {
                "model": str(options.model.resolve()),
                "providers": options.providers,
                "seconds": options.seconds,
                "rounds": options.rounds,
                "batches": list(options.batches),
                "cache": str((options.out / "tensorrt").resolve()),
            }
        )
    )
    all_steps = steps(options.providers)
    outcomes: dict[str, str] = {}
    complete = True
    try:
        for number, step in enumerate(all_steps):
            progress(f"{number + 1} of {len(all_steps)}: {step.name}", number / len(all_steps))
            outcomes[step.name] = _run(step, told, options.out)
    except KeyboardInterrupt:
        complete = False
    progress("done", 1.0)
    results = {
        step.name: json.loads(file.read_text())
        for step in all_steps
        if (file := _result(step, options.out)).exists()
    }
    report = Report(
        command="mapseek bench gpu",
        machine=machine,
        model_id=artifact.manifest.model_id,
        settings={name: getattr(options, name) for name in GpuOptions.__dataclass_fields__},
        tables=_tables(options, outcomes, results),
        targets=_targets(results),
        data={"steps": outcomes, "results": results},
        complete=complete,
    )
    report.write(options.out / "report.json")
    with (options.out / "report.txt").open("w", encoding="utf-8") as text:
        report.show(Console(file=text, width=_WIDTH))
    return report


def _result(step: Step, out: Path) -> Path:
    return out / f"{step.name.replace(' ', '-')}.json"


def _run(step: Step, options_file: Path, out: Path) -> str:
    """Runs a step, and says in a sentence what became of it."""
    result = _result(step, out)
    if result.exists():
        return "done before"
    log = result.with_suffix(".log")
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603  our own program
            [
                *(sys.executable, "-m", "benchmarks.gpu.steps"),
                *(str(options_file), step.name, str(result)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            status = process.wait(_LONGEST_STEP_S)
        except subprocess.TimeoutExpired:
            return f"hung for {_LONGEST_STEP_S:g} s, see {log.name}"
        finally:
            process.terminate()
            process.wait()
    if status == 0:
        return f"done in {time.monotonic() - started:.0f} s"
    words = log.read_text(errors="replace").splitlines() or [f"status {status}"]
    return f"failed: {words[-1]}"


def _tables(
    options: GpuOptions, outcomes: Mapping[str, str], results: Mapping[str, Any]
) -> list[Table]:
    tflops = results.get("matrix limit", {}).get("tflops", float("nan"))
    rehearsed = "cpu" in options.providers
    notes = [f"the card's limit, measured by large products: {tflops:.3g} Tflop/s"]
    if rehearsed:
        notes.append("A rehearsal on the CPU: it says nothing about any GPU.")
    rows: list[Sequence[Cell]] = []
    for name, found in results.items():
        what, _, how = name.partition(" ")
        if what == "model":
            rate = float(found["images_per_s"])
            of_limit = rate * options.gflop / 1000 / tflops
            rows.append((f"model, {how}", rate, of_limit, None, found["one_p50_ms"]))
        elif what == "server":
            single = [one for one in found["kinds"].values() if "one_caller_p50_ms" in one]
            rate = float(found["images_per_s"])
            alone = min(float(one["one_caller_p50_ms"]) for one in single)
            rows.append((f"server, {how}, raw pixels", rate, None, _of_model(name, results), alone))
    memory = [
        (f"{name.partition(' ')[2]}: {case}", outcome)
        for name, found in results.items()
        if name.startswith("memory ")
        for case, outcome in found["outcomes"].items()
    ]
    return [
        Table(title="Steps", columns=("", "what became of it"), rows=list(outcomes.items())),
        Table(
            title="The model against the card, the server against the model",
            columns=("", "images/s", "x the card's limit", "x the model", "one caller, p50 ms"),
            rows=rows,
            notes=notes,
        ),
        Table(title="With too little memory", columns=("", "the server"), rows=memory),
    ]


def _targets(results: Mapping[str, Any]) -> list[Target]:
    return [
        Target.at_least(
            f"{name}: images/s >= {_MIN_OF_MODEL} x the model's, raw pixels",
            _of_model(name, results),
            _MIN_OF_MODEL,
        )
        for name in results
        if name.startswith("server ")
    ]


def _of_model(name: str, results: Mapping[str, Any]) -> float:
    model = results.get(name.replace("server ", "model ", 1), {})
    return float(results[name]["images_per_s"]) / float(model.get("images_per_s", "nan"))
