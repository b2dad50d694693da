"""Whole exports of small checkpoints, judged by the engine that serves them."""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("optimum")

import onnx
import onnxruntime
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizerFast,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from exporter import build, quantise, towers
from exporter.errors import ExportError
from exporter.export import export_model
from exporter.triton import Serving, repository_files
from exporter.verify import FidelityError
from inference.artifact import Artifact, Precision, Thresholds
from inference.engine import EngineOptions, load_image_engine, load_text_engine
from inference.errors import StartupError
from inference.preprocess import reference

pytestmark = pytest.mark.exporter

Save = Callable[..., None]
CPU = EngineOptions(provider="cpu", max_batch=8)


class Geometry(NamedTuple):
    """One of OpenAI's models.

    Attributes:
        patch: Pixels along a patch; the picture has 224.
        width: Of the image tower.
        layers: Of the image tower.
        reader_width: Of the text tower, which has twelve layers.
        projection: Of both.
    """

    patch: int
    width: int
    layers: int
    reader_width: int
    projection: int


GEOMETRIES = {
    "ViT-B/32": Geometry(32, 768, 12, 512, 512),
    "ViT-B/16": Geometry(16, 768, 12, 512, 512),
    "ViT-L/14": Geometry(14, 1024, 24, 768, 768),
}
BARS = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def picture() -> bytes:
    """A gradient, wider than high."""
    across, down = np.meshgrid(np.arange(90), np.arange(60))
    pixels = np.stack([across * 2, down * 4, 255 - across], axis=-1).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def torch_image_embedding(checkpoint: Path, picture: bytes) -> Any:
    """What `transformers` itself makes of a picture."""
    model = CLIPVisionModelWithProjection.from_pretrained(checkpoint).eval()
    processor = CLIPImageProcessor.from_pretrained(checkpoint)
    values = processor(Image.open(io.BytesIO(picture)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        embedding = model(pixel_values=values).image_embeds[0].numpy()
    return embedding / np.linalg.norm(embedding)


def served_image_embedding(artifact: Artifact, picture: bytes) -> Any:
    engine = load_image_engine(artifact, CPU)
    return engine.embed([reference(picture, artifact.manifest.preprocessing)])[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_vision_tower_is_served_as_pytorch_computes_it(
    vision_checkpoint: Path, out: Path, picture: bytes, precision: str
) -> None:
    lines: list[str] = []
    exported = export_model(str(vision_checkpoint), out, precision=precision, report=lines.append)
    manifest = Artifact.load(out).manifest
    assert manifest == exported.artifact.manifest
    assert manifest.name == "vision"
    assert manifest.license == "apache-2.0"
    assert manifest.precision == Precision(precision)
    assert manifest.dimensions == 24
    assert manifest.opset == 18
    assert manifest.text is None
    assert manifest.preprocessing.resize == "squash"
    assert set(manifest.sha256) == {"model.onnx"}
    assert manifest.tools["torch"] == torch.__version__
    fidelity = manifest.fidelity["image"]
    assert fidelity.min_cosine >= BARS[precision]
    assert fidelity.batch_sizes == (1, 3, 8)
    assert fidelity.pictures >= 24
    assert exported.size_bytes > 0
    assert lines
    expected = torch_image_embedding(vision_checkpoint, picture)
    embedding = served_image_embedding(exported.artifact, picture)
    assert embedding @ expected >= BARS[precision]
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_the_graph_takes_bytes_and_gives_unit_vectors_of_the_projection(
    vision_checkpoint: Path, out: Path
) -> None:
    export_model(str(vision_checkpoint), out, precision="fp16")
    graph = onnx.load(out / "model.onnx").graph
    (source,), (target,) = graph.input, graph.output
    kinds = onnx.TensorProto
    assert source.type.tensor_type.elem_type == kinds.UINT8
    assert [d.dim_value for d in source.type.tensor_type.shape.dim] == [0, 32, 32, 3]
    assert target.name == "image_embeds"
    assert target.type.tensor_type.elem_type == kinds.FLOAT
    assert target.type.tensor_type.shape.dim[1].dim_value == 24


def test_standard_operators_only(vision_checkpoint: Path, out: Path) -> None:
    """So that every provider takes the graph, and fuses it in its own way."""
    export_model(str(vision_checkpoint), out)
    model = onnx.load(out / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)


def test_the_same_checkpoint_gives_the_same_file(vision_checkpoint: Path, tmp_path: Path) -> None:
    """The name of a vector space is the digest of its graph: it must not change by exporting."""
    ids = {
        export_model(
            str(vision_checkpoint), tmp_path / name, name="same"
        ).artifact.manifest.model_id
        for name in ("one", "two")
    }
    assert len(ids) == 1


def test_no_path_of_this_machine_gets_into_the_graph(vision_checkpoint: Path, out: Path) -> None:
    export_model(str(vision_checkpoint), out)
    content = (out / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(out.parent).encode() not in content


@pytest.mark.parametrize("eos_token_id", [None, 2], ids=["new configuration", "old configuration"])
def test_both_towers_of_a_clip_model(
    make_clip: Save, tmp_path: Path, out: Path, picture: bytes, eos_token_id: int | None
) -> None:
    checkpoint = tmp_path / "clip"
    make_clip(checkpoint, eos_token_id=eos_token_id)
    artifact = export_model(str(checkpoint), out).artifact
    manifest = artifact.manifest
    assert set(manifest.sha256) == {"model.onnx", "text_model.onnx", "tokenizer.json"}
    assert manifest.text is not None
    assert manifest.text.context_length == 20
    assert manifest.fidelity["text"].min_cosine >= 0.9999
    assert manifest.preprocessing.resize == "crop"
    expected = torch_image_embedding(checkpoint, picture)
    assert served_image_embedding(artifact, picture) @ expected >= 0.9999

    engine = load_text_engine(artifact, CPU)
    assert engine is not None
    tokeniser = CLIPTokenizerFast.from_pretrained(checkpoint)
    tower = CLIPTextModelWithProjection.from_pretrained(checkpoint).eval()
    for text in ("map", "a map of somewhere", "far too many words for so short a context " * 9):
        tokens = tokeniser(text, truncation=True, max_length=20, return_tensors="pt")
        with torch.inference_mode():
            embedding = tower(**tokens).text_embeds[0].numpy()
        served = engine.embed([engine.tokenise(text)])[0]
        assert served @ (embedding / np.linalg.norm(embedding)) >= 0.9999
        assert np.linalg.norm(served) == pytest.approx(1, abs=1e-5)


def test_the_text_graph_takes_any_length_up_to_the_context(
    clip_checkpoint: Path, out: Path
) -> None:
    """Padding after the end of the text changes nothing, so a reader may leave it away."""
    artifact = export_model(str(clip_checkpoint), out).artifact
    session = onnxruntime.InferenceSession(
        artifact.file("text_model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert artifact.manifest.text is not None
    end = artifact.manifest.text.pad_token_id
    short = np.array([[end - 1, 5, 6, end]], dtype=np.int64)
    padded = np.pad(short, ((0, 0), (0, 16)), constant_values=end)
    (one,) = session.run(None, {"input_ids": short})
    (other,) = session.run(None, {"input_ids": padded})
    assert one.shape == (1, 24)
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_both_towers_at_other_precisions(clip_checkpoint: Path, out: Path, precision: str) -> None:
    fidelity = export_model(
        str(clip_checkpoint), out, precision=precision
    ).artifact.manifest.fidelity
    assert fidelity["image"].min_cosine >= BARS[precision]
    assert fidelity["text"].min_cosine >= BARS[precision]


def test_a_clip_model_without_a_tokeniser_keeps_its_image_tower(
    clip_checkpoint: Path, tmp_path: Path, out: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(
        clip_checkpoint, bare, ignore=shutil.ignore_patterns("vocab*", "merges*", "token*")
    )
    lines: list[str] = []
    artifact = export_model(str(bare), out, report=lines.append).artifact
    assert artifact.manifest.text is None
    assert any("no tokeniser" in line for line in lines)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokeniser_is_one_sentence(
    clip_checkpoint: Path, tmp_path: Path, out: Path, content: str
) -> None:
    folder = shutil.copytree(clip_checkpoint, tmp_path / "clip")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ExportError, match=r"tokeniser of .* cannot be loaded") as caught:
        export_model(str(folder), out)
    assert "\n" not in str(caught.value)


def test_bin_weights(make_vision: Save, tmp_path: Path, out: Path, picture: bytes) -> None:
    make_vision(tmp_path / "bin", safe=False)
    assert not list((tmp_path / "bin").glob("*.safetensors"))
    artifact = export_model(str(tmp_path / "bin"), out).artifact
    expected = torch_image_embedding(tmp_path / "bin", picture)
    assert served_image_embedding(artifact, picture) @ expected >= 0.9999


def vision_settings(geometry: Geometry, layers: int) -> dict[str, Any]:
    return {
        "image_size": 224,
        "patch_size": geometry.patch,
        "hidden_size": geometry.width,
        "num_hidden_layers": layers,
        "num_attention_heads": geometry.width // 64,
        "intermediate_size": 4 * geometry.width,
        "projection_dim": geometry.projection,
        "hidden_act": "quick_gelu",
    }


@pytest.mark.parametrize(("name", "layers"), [("ViT-B/32", 12), ("ViT-B/16", 2), ("ViT-L/14", 2)])
def test_the_geometries_of_openai(
    make_vision: Save, tmp_path: Path, out: Path, name: str, layers: int
) -> None:
    """Exact but for the number of layers: two do what the other ten or twenty-two do."""
    geometry = GEOMETRIES[name]
    make_vision(tmp_path / "checkpoint", **vision_settings(geometry, layers))
    manifest = export_model(str(tmp_path / "checkpoint"), out).artifact.manifest
    assert manifest.dimensions == geometry.projection
    assert manifest.preprocessing.image_size == 224
    assert manifest.fidelity["image"].min_cosine >= 0.9999


@pytest.mark.skipif(
    "MAPSEEK_TEST_WHOLE_MODELS" not in os.environ,
    reason="takes minutes and gigabytes: set MAPSEEK_TEST_WHOLE_MODELS to run it",
)
@pytest.mark.parametrize("precision", list(BARS))
@pytest.mark.parametrize("name", GEOMETRIES)
def test_whole_models_of_openai(
    make_clip: Save, tmp_path: Path, out: Path, name: str, precision: str
) -> None:
    geometry = GEOMETRIES[name]
    text = {
        "hidden_size": geometry.reader_width,
        "num_hidden_layers": 12,
        "num_attention_heads": geometry.reader_width // 64,
        "intermediate_size": 4 * geometry.reader_width,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    }
    make_clip(tmp_path / "checkpoint", text=text, **vision_settings(geometry, geometry.layers))
    manifest = export_model(
        str(tmp_path / "checkpoint"), out, precision=precision
    ).artifact.manifest
    for tower in ("image", "text"):
        assert manifest.fidelity[tower].min_cosine >= BARS[precision]


def test_half_precision_weights_are_computed_in_float(own_folder: Path, out: Path) -> None:
    model = CLIPVisionModelWithProjection.from_pretrained(own_folder)
    model.half().save_pretrained(own_folder)
    manifest = export_model(str(own_folder), out).artifact.manifest
    assert manifest.fidelity["image"].min_cosine >= 0.9999


def test_name_licence_and_thresholds_may_be_given(vision_checkpoint: Path, out: Path) -> None:
    thresholds = Thresholds(same=0.8, similar=0.6)
    manifest = export_model(
        str(vision_checkpoint), out, name="ours", license_id="MIT", thresholds=thresholds
    ).artifact.manifest
    assert (manifest.name, manifest.license, manifest.thresholds) == ("ours", "MIT", thresholds)


def test_a_tower_without_its_projection_is_refused(tmp_path: Path, out: Path) -> None:
    config = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "bare")
    with pytest.raises(ExportError, match=r"has no visual_projection\.weight"):
        export_model(str(tmp_path / "bare"), out)
    assert not out.exists()


def test_another_kind_of_model_is_refused(own_folder: Path, out: Path) -> None:
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ExportError, match="type 'bert': only CLIP"):
        export_model(str(own_folder), out)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_configuration_is_named(own_folder: Path, out: Path, content: str) -> None:
    (own_folder / "config.json").write_text(content)
    with pytest.raises(ExportError, match=r"config\.json of .* does not say"):
        export_model(str(own_folder), out)


def test_damaged_weights_are_one_sentence(own_folder: Path, out: Path) -> None:
    weights = own_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ExportError, match="cannot be loaded") as caught:
        export_model(str(own_folder), out)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_one_sentence(own_folder: Path, out: Path) -> None:
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="cannot be loaded") as caught:
        export_model(str(own_folder), out)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_the_configuration_are_refused(own_folder: Path, out: Path) -> None:
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ExportError, match=r"lacks \d+ weights"):
        export_model(str(own_folder), out)
    (own_folder / "config.json").write_text(json.dumps(config | {"projection_dim": 25}))
    with pytest.raises(ExportError, match="cannot be loaded"):
        export_model(str(own_folder), out)


def test_a_missing_preprocessor_configuration_is_named(own_folder: Path, out: Path) -> None:
    (own_folder / "preprocessor_config.json").unlink()
    with pytest.raises(ExportError, match=r"has no preprocessor_config\.json"):
        export_model(str(own_folder), out)


def test_a_precision_that_does_not_exist_is_refused(vision_checkpoint: Path, out: Path) -> None:
    with pytest.raises(ExportError, match="no precision 'int4': choose one of fp32, fp16, int8"):
        export_model(str(vision_checkpoint), out, precision="int4")


def test_a_foreign_folder_is_refused_before_any_work(vision_checkpoint: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    lines: list[str] = []
    with pytest.raises(ExportError, match="left alone"):
        export_model(str(vision_checkpoint), out, report=lines.append)
    assert not lines


def test_a_failing_export_keeps_the_older_artifact(
    vision_checkpoint: Path, own_folder: Path, out: Path
) -> None:
    before = export_model(str(vision_checkpoint), out).artifact
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(ExportError):
        export_model(str(own_folder), out)
    assert Artifact.load(out).manifest == before.manifest


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow further, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("size", [2_000, 100_000, 200_000], ids=["tokeniser", "text", "image"])
def test_a_full_disk_is_one_sentence(
    clip_checkpoint: Path, out: Path, size: int, precision: str
) -> None:
    with (
        pytest.raises(ExportError, match=f"disk is full: {out} could not be written"),
        files_of_at_most(size),
    ):
        export_model(str(clip_checkpoint), out, precision=precision)
    assert list(out.parent.iterdir()) == []


def test_too_little_room_for_quantising_is_found_beforehand(
    vision_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of onnxruntime's quantiser cuts files off at the end of the disk and goes on."""
    room = shutil.disk_usage(vision_checkpoint)._replace(free=400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: room)
    with pytest.raises(ExportError, match="disk is full"):
        export_model(str(vision_checkpoint), out, precision="int8")
    assert list(out.parent.iterdir()) == []


def test_quantising_needs_no_room_elsewhere(
    vision_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(out / "nowhere"))
    export_model(str(vision_checkpoint), out, precision="int8")
    assert tempfile.tempdir == str(out / "nowhere")


def test_weights_beside_the_graph_are_refused(
    vision_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimum puts more than 2 GB there, where the name of the vector space would not see them."""
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    with pytest.raises(ExportError, match=r"image tower is larger than .* export it as fp16"):
        export_model(str(vision_checkpoint), out)
    assert list(out.parent.iterdir()) == []


def test_below_the_bar_nothing_is_written(
    vision_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tampered(towers.ImageTower):
        def forward(self, pixels: Any) -> dict[str, Any]:
            embeds = super().forward(pixels)["image_embeds"]
            return {"image_embeds": embeds.roll(1, dims=-1)}

    monkeypatch.setattr(build, "ImageTower", Tampered)
    with pytest.raises(
        FidelityError, match=r"fp32 image tower .* is -?0\.\d+, [\d.]+ below the bar"
    ):
        export_model(str(vision_checkpoint), out)
    assert list(out.parent.iterdir()) == []


def test_an_eight_bit_tower_keeps_as_much_float_as_it_needs(
    vision_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two rungs of the ladder break; the third is verified and kept."""
    tried: list[frozenset[str]] = []
    honest = quantise.quantise

    def breaking(source: Path, target: Path, feeds: Any, matrices: frozenset[str]) -> None:
        tried.append(matrices)
        honest(source, target, feeds, matrices)
        if len(tried) < 3:
            model = onnx.load(target)
            (projection,) = [
                tensor for tensor in model.graph.initializer if "MatMul" in tensor.name
                and list(tensor.dims) == [48, 24]
            ]  # fmt: skip
            values = onnx.numpy_helper.to_array(projection)
            projection.CopyFrom(onnx.numpy_helper.from_array(values[:, ::-1], projection.name))
            onnx.save(model, target)

    monkeypatch.setattr(quantise, "quantise", breaking)
    lines: list[str] = []
    export_model(str(vision_checkpoint), out, precision="int8", report=lines.append)
    assert tried == list(quantise.LADDER[:3])
    assert sum("Leaving more of it in float32" in line for line in lines) == 2


# Stops at a line of the progress report for as long as its standard input is open.
STOPPING = """
import sys
from pathlib import Path
from exporter.export import export_model
from exporter.triton import Serving, repository_files

def report(line):
    print(line, flush=True)
    if line.startswith(sys.argv[4]):
        sys.stdin.read()

export_model(sys.argv[1], Path(sys.argv[2]), precision=sys.argv[3], report=report)
"""


@pytest.mark.parametrize(
    ("precision", "step"), [("fp32", "Verifying the text"), ("int8", "Quantising the image")]
)
def test_an_export_that_is_killed_leaves_nothing_that_loads(
    clip_checkpoint: Path, out: Path, precision: str, step: str
) -> None:
    arguments = [str(clip_checkpoint), str(out), precision, step]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPING, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith(step) for line in process.stdout)
        process.kill()
    assert not out.exists()
    (partial,) = out.parent.iterdir()
    assert list(partial.rglob("*.onnx"))
    with pytest.raises(StartupError):
        Artifact.load(partial)
    export_model(str(clip_checkpoint), out)
    assert list(out.parent.iterdir()) == [out]
    assert Artifact.load(out).manifest.fidelity.keys() == {"image", "text"}


def test_a_missing_library_is_named_before_any_work(
    vision_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.export.find_spec", lambda _name: None)
    lines: list[str] = []
    with pytest.raises(ModuleNotFoundError, match="torch"):
        export_model(str(vision_checkpoint), out, report=lines.append)
    assert not lines


def test_every_error_of_the_exporter_ends_the_command_with_a_sentence() -> None:
    assert issubclass(ExportError, StartupError)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_becomes_a_repository_for_triton(
    clip_checkpoint: Path, out: Path, picture: bytes, precision: str
) -> None:
    exported = export_model(str(clip_checkpoint), out, precision=precision, triton=Serving())
    manifest = exported.artifact.manifest
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == repository_files(manifest)
    assert exported.size_bytes == sum((out / name).stat().st_size for name in files)

    (graph,) = out.glob("clip/*/model.onnx")
    batch = reference(picture, manifest.preprocessing)[None]
    (rows,) = onnxruntime.InferenceSession(graph).run(["image_embeds"], {"pixels": batch})
    expected = torch_image_embedding(clip_checkpoint, picture)
    assert rows[0] @ expected > BARS[precision]
