import hashlib
import json
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from inference import providers
from inference.artifact import IMAGE_TOWER, MANIFEST, TEXT_TOWER, TOKENIZER, Artifact, TextTower
from inference.engine import (
    EngineOptions,
    OnnxTextEngine,
    Pixels,
    load_image_engine,
    load_text_engine,
)
from inference.errors import EngineMemoryError, InferenceError, InvalidInputError, StartupError
from inference.providers import CPU, CUDA, TENSORRT, Choice, Opened
from inference.tower import Tower, bucket_sizes, is_out_of_memory
from tests.inference.core.models import (
    CONTEXT,
    DIMENSIONS,
    IMAGE_WEIGHTS,
    SIDE,
    TEXT_WEIGHTS,
    expected,
    save_model,
    save_tokenizer,
    write_manifest,
)

ON_CPU = EngineOptions(provider="cpu", threads=1, max_batch=5)


def pictures(count: int) -> Pixels:
    shape = (count, SIDE, SIDE, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def load(folder: Path, options: EngineOptions = ON_CPU) -> Tower[np.uint8]:
    return load_image_engine(Artifact.load(folder), options)


def load_text(folder: Path) -> OnnxTextEngine:
    engine = load_text_engine(Artifact.load(folder), ON_CPU)
    assert engine is not None
    return engine


def on_a_device(folder: Path) -> Tower[np.uint8]:
    """The tower with bound buffers, as on a GPU; the CPU plays the device."""
    session = onnxruntime.InferenceSession(folder / IMAGE_TOWER, providers=[CPU])
    return Tower(
        Opened(session=session, choice=Choice(name=CUDA, max_batch=5)),
        input_name="pixels",
        item_shape=(SIDE, SIDE, 3),
        dtype=np.uint8,
        dimensions=DIMENSIONS,
        device="cpu",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


SHARED = EngineOptions(provider="cpu", threads=3, max_batch=5)


@pytest.mark.parametrize("where", ["host", "shared", "device"])
def test_every_batch_size_gives_each_picture_its_own_unit_row(folder: Path, where: str) -> None:
    tower = (
        on_a_device(folder)
        if where == "device"
        else load(folder, SHARED if where == "shared" else ON_CPU)
    )
    tower.warm_up()

    for count in (5, 3, 1, 4, 2):  # after a larger batch, none of it may be left
        batch = pictures(count)
        wanted = expected(batch, IMAGE_WEIGHTS)
        for given_as in (batch, list(batch)):
            embeddings = tower.embed(given_as)
            assert embeddings.dtype == np.float32
            np.testing.assert_allclose(embeddings, wanted, atol=1e-5)


@pytest.mark.parametrize("where", ["host", "device"])
def test_an_answer_is_not_overwritten_by_the_next_run(folder: Path, where: str) -> None:
    tower = on_a_device(folder) if where == "device" else load(folder)
    first = tower.embed(pictures(2))
    kept = first.copy()
    tower.embed(255 - pictures(2))

    assert np.array_equal(first, kept)


def test_each_core_runs_batches_of_its_own_where_the_model_is_small(folder: Path) -> None:
    tower = load(folder, EngineOptions(provider="cpu", threads=2))
    assert tower.cores is not None
    assert tower.cores.count == 2
    batches = [np.roll(pictures(1 + number % 8), number, axis=1) for number in range(40)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(tower.cores.embed, batches))
    for batch, embeddings in zip(batches, found, strict=True):
        np.testing.assert_allclose(embeddings, expected(batch, IMAGE_WEIGHTS), atol=1e-5)


def test_a_large_model_takes_all_cores_for_one_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(folder, EngineOptions(provider="cpu", threads=2)).max_batch == 8
    monkeypatch.setattr(providers, "_SMALL_MODEL_S", 0.0)
    tower = load(folder, EngineOptions(provider="cpu", threads=2))
    assert tower.max_batch == 4
    assert tower.cores is None
    np.testing.assert_allclose(
        tower.embed(pictures(3)), expected(pictures(3), IMAGE_WEIGHTS), atol=1e-5
    )


def test_a_model_is_no_larger_on_a_machine_that_others_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = onnxruntime.InferenceSession.run

    def kept_waiting(*args: Any) -> Any:
        time.sleep(2 * providers._SMALL_MODEL_S)
        return run(*args)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", kept_waiting)
    assert load(folder, EngineOptions(provider="cpu", threads=2)).cores is not None


@given(max_batch=st.integers(1, 300))
def test_any_batch_fits_into_a_bucket_less_than_twice_its_size(max_batch: int) -> None:
    sizes = bucket_sizes(max_batch)

    assert list(sizes) == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, max_batch)
    for count in range(1, max_batch + 1):
        assert next(size for size in sizes if size >= count) < 2 * count


@pytest.mark.parametrize("count", [0, 6])
def test_a_batch_that_is_empty_or_too_large_is_refused(folder: Path, count: int) -> None:
    with pytest.raises(InferenceError, match=f"batch of {count} items was given; 1 to 5"):
        load(folder).embed(pictures(count))


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_run_that_fails_tells_no_details_and_spoils_nothing(folder: Path, where: str) -> None:
    tower = on_a_device(folder) if where == "device" else load(folder)
    wrong = np.zeros((2, SIDE, SIDE + 1, 3), np.uint8)
    with pytest.raises(InferenceError, match=r"^The model failed on this batch\.$"):
        tower.embed(wrong)

    np.testing.assert_allclose(
        tower.embed(pictures(2)), expected(pictures(2), IMAGE_WEIGHTS), atol=1e-5
    )


def test_memory_that_runs_out_is_told_apart_from_other_failures(tmp_path: Path) -> None:
    tower = load(save_model(tmp_path, hungry=True))

    with pytest.raises(EngineMemoryError, match="no memory for a batch of 2"):
        tower.embed(pictures(2))
    np.testing.assert_allclose(
        tower.embed(pictures(1)), expected(pictures(1), IMAGE_WEIGHTS), atol=1e-5
    )


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (True, "Failed to allocate memory for requested buffer of size 1048576"),
        (True, "Available memory of 12 is smaller than requested bytes of 1024"),
        (True, "CUDA failure 2: out of memory ; GPU=0"),
        (True, "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
        (True, "std::bad_alloc"),
        (False, "CUDA failure 700: an illegal memory access was encountered"),
        (False, "Got invalid dimensions for input: pixels"),
    ],
)
def test_messages_of_memory_that_ran_out_are_known(*, memory: bool, message: str) -> None:
    assert is_out_of_memory(message) is memory


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"weights": IMAGE_WEIGHTS[:, :3]}, "must return float32 .N, 5., as its manifest promises"),
        ({"output_type": TensorProto.DOUBLE}, "must return float32 .N, 5."),
        ({"input_name": "image"}, r"must have one input pixels tensor\(uint8\) .N, 8, 8, 3."),
        ({"input_type": TensorProto.FLOAT}, r"but it has pixels tensor\(float\)"),
        ({"input_shape": ("N", 4, 16, 3)}, "must have one input pixels"),
        ({"input_shape": (2, SIDE, SIDE, 3)}, "must have one input pixels"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    tmp_path: Path, tower: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message) as refused:
        load(save_model(tmp_path, **tower))

    assert str(refused.value).endswith("Export it again.")


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"unit": False}, "not of unit length .*Export it again"),
        ({"weights": IMAGE_WEIGHTS[:, :3], "shaped_as": (-1, 3)}, "promises 5 dimensions"),
        ({"shaped_as": (5, 5)}, "(?s)cannot run a batch of 4 on CPU.*smaller MAPSEEK_MAX_BATCH"),
        ({"hungry": True}, "cannot run a batch of 5"),
    ],
)
def test_warming_up_refuses_a_model_whose_answers_are_wrong(
    tmp_path: Path, tower: dict[str, Any], message: str
) -> None:
    engine = load(save_model(tmp_path, **tower))

    with pytest.raises(StartupError, match=message):
        engine.warm_up()


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("cuda", "MAPSEEK_PROVIDER=cuda was asked for.*extra `gpu`"),
        ("tensorrt", "MAPSEEK_PROVIDER=tensorrt was asked for.*TensorRT 10"),
    ],
)
def test_a_provider_that_is_not_installed_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, provider: Any, message: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])

    with pytest.raises(StartupError, match=message):
        load(folder, EngineOptions(provider=provider))


# onnxruntime itself goes on with the CPU where a provider's driver or library is missing.
without_driver = pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")


@without_driver
@pytest.mark.parametrize(("provider", "name"), [("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_a_provider_that_onnxruntime_quietly_replaces_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, provider: Any, name: str
) -> None:
    if name in onnxruntime.get_available_providers():
        pytest.skip("the provider may really work here")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])

    with pytest.raises(StartupError, match=f"{name} was asked for, but onnxruntime uses {CPU}"):
        load(folder, EngineOptions(provider=provider))


@without_driver
def test_auto_falls_back_to_the_cpu_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("CUDA may really work here")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])

    with caplog.at_level(logging.WARNING):
        tower = load(folder, EngineOptions(max_batch=2))

    assert (tower.provider, tower.max_batch) == (CPU, 2)
    assert "Falling back to the CPU, because CUDA does not work" in caplog.text
    tower.warm_up()


def test_a_cache_folder_that_cannot_be_made_is_named_with_its_setting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    options = EngineOptions(provider="tensorrt", tensorrt_cache=folder / MANIFEST / "cache")

    with pytest.raises(StartupError, match=r"MAPSEEK_TENSORRT_CACHE=.*cannot be made"):
        load(folder, options)


def test_a_graph_that_onnxruntime_cannot_read_is_named(folder: Path) -> None:
    (folder / IMAGE_TOWER).write_bytes(b"no graph")
    write_manifest(folder)

    with pytest.raises(StartupError, match=f"cannot load .*{IMAGE_TOWER} with {CPU}"):
        load(folder)


def change_manifest(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(document | changes))


def test_a_folder_without_a_manifest_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no exported model.*mapseek export MODEL --out DIR"):
        Artifact.load(tmp_path)


def test_a_file_that_differs_from_the_manifests_digest_is_refused(folder: Path) -> None:
    data = bytearray((folder / IMAGE_TOWER).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / IMAGE_TOWER).write_bytes(data)
    with pytest.raises(StartupError, match=rf"{IMAGE_TOWER} is damaged .*SHA-256.*copy the model"):
        Artifact.load(folder)

    (folder / IMAGE_TOWER).unlink()
    with pytest.raises(StartupError, match=f"{IMAGE_TOWER} is missing: export the model again"):
        Artifact.load(folder)

    # Readable by its rights, for root as well, and yet not to be read.
    (folder / IMAGE_TOWER).symlink_to("/proc/self/mem")
    with pytest.raises(StartupError, match=f"{IMAGE_TOWER} cannot be read: "):
        Artifact.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "has format 3, and this mapseek reads up to 2: update mapseek"),
        ({"dimensions": 0}, "dimensions: .*Export the model again"),
        ({"surprise": 1}, "surprise: "),
        ({"sha256": {}}, f"lists no digest for {IMAGE_TOWER}"),
        ({"text": {"context_length": 6, "pad_token_id": 0}}, f"no digest for {TEXT_TOWER}"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_with_the_field(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_manifest(folder, **changes)

    with pytest.raises(StartupError, match=message):
        Artifact.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"format"'])
def test_a_manifest_that_is_no_document_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)

    with pytest.raises(StartupError, match=MANIFEST):
        Artifact.load(folder)


@pytest.mark.parametrize("name", ["../other.onnx", "/other.onnx", "deeper/other.onnx"])
def test_a_manifest_never_reaches_out_of_its_folder(folder: Path, name: str) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    change_manifest(folder, sha256=document["sha256"] | {name: "00" * 32})

    with pytest.raises(StartupError, match="names a file elsewhere"):
        Artifact.load(folder)


def test_the_model_id_changes_with_the_image_tower(tmp_path: Path) -> None:
    one = Artifact.load(save_model(tmp_path / "one")).manifest.model_id
    other = save_model(tmp_path / "other", weights=2 * IMAGE_WEIGHTS)

    assert one.startswith("tiny@")
    assert Artifact.load(other).manifest.model_id != one


def test_the_model_id_changes_with_the_margin_of_renders_and_is_what_it_was_without(
    folder: Path,
) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    made_by = (
        f'{document["sha256"][IMAGE_TOWER]} {{"image_size":{SIDE},"resize":"squash",'
        '"interpolation":"bicubic"}'
    )
    earlier = {**document["preprocessing"]}
    del earlier["render_margin"]

    change_manifest(folder, format=1, preprocessing=earlier)
    without = Artifact.load(folder).manifest.model_id
    change_manifest(folder, format=2, preprocessing=earlier | {"render_margin": 0.15})

    assert without == f"tiny@{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"
    assert Artifact.load(folder).manifest.model_id != without


def test_texts_are_padded_and_cut_without_losing_their_end(tmp_path: Path) -> None:
    engine = load_text(save_model(tmp_path, text=True))

    assert engine.tokenise("a map").tolist() == [1, 3, 5, 2, 0, 0]
    assert engine.tokenise("a b a b a b a b").tolist() == [1, 3, 4, 3, 4, 2]


def test_texts_become_unit_rows(tmp_path: Path) -> None:
    engine = load_text(save_model(tmp_path, text=True))
    engine.warm_up()
    ids = [engine.tokenise(text) for text in ("a", "map map", "b a map")]

    np.testing.assert_allclose(engine.embed(ids), expected(np.stack(ids), TEXT_WEIGHTS), atol=1e-5)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_a_text_of_nothing_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInputError, match="text is empty: send at least a word"):
        load_text(save_model(tmp_path, text=True)).tokenise(text)


def test_a_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be tokenised"):
        load_text(save_model(tmp_path, text=True)).tokenise("half a pair: \ud800")


def test_a_model_without_a_text_tower_has_no_text_engine(folder: Path) -> None:
    assert load_text_engine(Artifact.load(folder), ON_CPU) is None


@pytest.mark.parametrize(
    ("marks", "pad_token_id", "message"),
    [
        (False, 0, "loses the end-of-text token when it cuts a text of more than 6 tokens"),
        (True, 99, "has no token 99, with which the manifest wants texts to be padded"),
        (None, 0, "tokenizer.json cannot be read"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_tower_is_refused(
    tmp_path: Path, *, marks: bool | None, pad_token_id: int, message: str
) -> None:
    folder = save_model(tmp_path, text=True)
    if marks is None:
        (folder / TOKENIZER).write_text("{}")
    else:
        save_tokenizer(folder / TOKENIZER, marks=marks)
    text = TextTower(context_length=CONTEXT, pad_token_id=pad_token_id)
    write_manifest(folder, text=text)

    with pytest.raises(StartupError, match=f"{message}.* Export the model again"):
        load_text(folder)


@pytest.mark.parametrize("package", ["inference", "exporter"])
def test_onnxruntime_keeps_no_identifier_of_the_machine(
    folder: Path, tmp_path: Path, package: str
) -> None:
    """In a process of its own with a bare environment: in CI onnxruntime keeps none anyway."""
    home = tmp_path / "home"
    home.mkdir()
    program = (
        f"import sys, {package}, onnxruntime as ort; ort.InferenceSession(sys.argv[1]); print(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder / IMAGE_TOWER],
        env={"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"
    assert not list(home.iterdir())
