from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
from typer.testing import CliRunner

from bot.cli.main import app
from exporter.errors import ExportError
from exporter.export import lay_out
from exporter.staging import staged
from exporter.triton import Serving, repository_files
from inference.artifact import MANIFEST, Artifact, Manifest
from inference.errors import StartupError
from inference.settings import BUNDLED_MODEL
from tests.inference.core.models import CONTEXT, DIMENSIONS, SIDE, save_model

BUNDLED_VERSION = str(int(Artifact.load(BUNDLED_MODEL).manifest.model_id.rpartition("@")[2], 16))


def config_of(model: Path) -> triton.ModelConfig:
    """A config.pbtxt, read in the schema that Triton publishes."""
    return text_format.Parse((model / "config.pbtxt").read_text(), triton.ModelConfig())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(
        tmp_path / "model", name="maker/tiny model", text=True, output_name="image_embeds"
    )


def test_the_bundled_model_as_a_repository(tmp_path: Path) -> None:
    out = tmp_path / "repository"
    lay_out(BUNDLED_MODEL, out, Serving(max_batch=32, instances=2))
    graph = f"mapseek-small/{BUNDLED_VERSION}/model.onnx"
    assert files(out) == {"manifest.json", "mapseek-small/config.pbtxt", graph}
    assert (out / graph).read_bytes() == (BUNDLED_MODEL / "model.onnx").read_bytes()

    config = config_of(out / "mapseek-small")
    assert (config.name, config.backend) == ("mapseek-small", "onnxruntime")
    assert config.max_batch_size == 32
    assert list(config.version_policy.specific.versions) == [int(BUNDLED_VERSION)]
    (given,), (output,) = config.input, config.output
    assert (given.name, given.data_type) == ("pixels", triton.TYPE_UINT8)
    assert list(given.dims) == [192, 192, 3]
    assert (output.name, output.data_type) == ("image_embeds", triton.TYPE_FP32)
    assert list(output.dims) == [512]
    assert config.dynamic_batching.priority_levels == 2
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert [group.count for group in config.instance_group] == [2]
    assert [warmup.batch_size for warmup in config.model_warmup] == [32, 1]
    assert config.model_warmup[0].inputs["pixels"].zero_data
    manifest = Manifest.model_validate_json(config.parameters["mapseek_manifest"].string_value)
    assert manifest.model_id == Artifact.load(BUNDLED_MODEL).manifest.model_id


def test_a_text_tower_is_a_model_of_its_own(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    exported = lay_out(model, out, Serving())
    name = "maker_tiny_model"
    version = str(int(exported.artifact.manifest.model_id.split("@")[1], 16))
    assert files(out) == {
        "manifest.json",
        f"{name}/config.pbtxt",
        f"{name}/{version}/model.onnx",
        f"{name}_text/config.pbtxt",
        f"{name}_text/tokenizer.json",
        f"{name}_text/{version}/model.onnx",
    }
    assert files(out) == repository_files(exported.artifact.manifest)
    config = config_of(out / f"{name}_text")
    assert config.name == f"{name}_text"
    assert not config.instance_group
    assert (config.input[0].name, list(config.input[0].dims)) == ("input_ids", [CONTEXT])
    assert config.input[0].data_type == triton.TYPE_INT64
    assert (config.output[0].name, list(config.output[0].dims)) == ("text_embeds", [DIMENSIONS])


def test_the_graph_takes_what_the_config_says(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    lay_out(model, out, Serving(max_batch=3))
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        config = config_of(folder)
        (graph,) = folder.glob("*/model.onnx")
        assert graph.parent.name == str(config.version_policy.specific.versions[0])
        dtype = {triton.TYPE_UINT8: np.uint8, triton.TYPE_INT64: np.int64}[
            config.input[0].data_type
        ]
        batch = np.ones((config.max_batch_size, *config.input[0].dims), dtype)
        (rows,) = onnxruntime.InferenceSession(graph).run(
            [config.output[0].name], {config.input[0].name: batch}
        )
        assert rows.shape == (3, *config.output[0].dims)


def test_a_graph_that_does_not_fit_is_refused_and_nothing_appears(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", output_name="features")
    with pytest.raises(ExportError, match=r"features.*image_embeds.*export the model again"):
        lay_out(model, tmp_path / "repository", Serving())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no exported model"):
        lay_out(tmp_path, tmp_path / "repository", Serving())


def test_an_older_repository_is_replaced_and_a_foreign_one_is_not(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "repository"
    lay_out(model, out, Serving())
    lay_out(model, out, Serving(max_batch=7))
    assert config_of(out / "maker_tiny_model").max_batch_size == 7
    (out / "somebody-elses" / "1").mkdir(parents=True)
    with pytest.raises(ExportError, match="holds somebody-elses beside"):
        lay_out(model, out, Serving())
    assert (out / "somebody-elses").is_dir()


def test_neither_layout_replaces_the_other(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"holds model\.onnx beside"):
        lay_out(model, model, Serving())
    lay_out(model, out := tmp_path / "repository", Serving())
    with pytest.raises(ExportError, match="holds maker_tiny_model beside"), staged(out):
        pass


def test_a_killed_swap_is_put_right_by_the_next_run(model: Path, tmp_path: Path) -> None:
    lay_out(model, out := tmp_path / "repository", Serving())
    out.rename(tmp_path / ".repository.former-12345678")  # killed between the two renames
    with pytest.raises(RuntimeError), staged(out, repository_files):
        raise RuntimeError
    assert MANIFEST in files(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "repository"]


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_command(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    code, output = run(model, "--layout", "triton", "--out", out, "--max-batch", 5)
    assert code == 0
    assert "tritonserver --model-repository=" in output
    assert config_of(out / "maker_tiny_model").max_batch_size == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-batch", 5], "are for --layout triton"),
        (["--layout", "triton", "--precision", "fp16"], "is exported already"),
        (["--layout", "triton", "--name", "other"], "is exported already"),
    ],
)
def test_options_that_do_not_go_together(
    model: Path, tmp_path: Path, options: list[object], says: str
) -> None:
    code, output = run(model, "--out", tmp_path / "repository", *options)
    assert code == 2
    assert says in " ".join(output.split())
    assert not (tmp_path / "repository").exists()


def test_sides_are_those_of_the_manifest(model: Path, tmp_path: Path) -> None:
    lay_out(model, out := tmp_path / "repository", Serving())
    assert list(config_of(out / "maker_tiny_model").input[0].dims) == [SIDE, SIDE, 3]
