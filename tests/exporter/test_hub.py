"""Finding checkpoints: folders here, and the hub's protocol against a server on loopback."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from exporter.errors import ExportError
from exporter.hub import locate

pytestmark = pytest.mark.exporter
pytest.importorskip("torch")
pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "somebody/small-clip"
# Only what the tower needs may be downloaded; these are there to tempt.
TEMPTATIONS = ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx")


class Hub(http.server.ThreadingHTTPServer):
    """The parts of the hub's HTTP interface that a download uses, on loopback.

    Attributes:
        files: Content by name.
        refusal: Answers everything with this status and error code instead.
        downloaded: Names of the files that were sent.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.refusal: tuple[int, str] | None = None
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    """One request to the hub."""

    server: Hub

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        about, content = f"/api/models/{MODEL}", f"/{MODEL}/resolve/{COMMIT}/"
        if self.server.refusal is not None:
            status, code = self.server.refusal
            self.send(status, b"{}", {"X-Error-Code": code}, with_body=with_body)
        elif path.startswith(about):
            self.describe(path.removeprefix(about), with_body=with_body)
        elif path.startswith(content):
            self.file(path.removeprefix(content), with_body=with_body)
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)

    def describe(self, path: str, *, with_body: bool) -> None:
        if path not in {"", "/revision/main", f"/revision/{COMMIT}", "/revision/v1"}:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
            return
        siblings: list[dict[str, Any]] = [
            {"rfilename": name, "size": len(content)} for name, content in self.server.files.items()
        ]
        body = json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode()
        self.send(200, body, {"Content-Type": "application/json"}, with_body=with_body)

    def file(self, name: str, *, with_body: bool) -> None:
        content = self.server.files.get(name)
        if content is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
            return
        headers = {
            "ETag": f'"{sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "Content-Type": "application/octet-stream",
        }
        if with_body:
            self.server.downloaded.append(name)
        self.send(200, content, headers, with_body=with_body)

    def send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(vision_checkpoint: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in vision_checkpoint.iterdir()}
    with Hub(files | dict.fromkeys(TEMPTATIONS, b"another format")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# The library reads its endpoint and its cache once, when it is imported: so a process each.
LOCATE = """
import json, sys
from exporter.errors import ExportError
from exporter.hub import locate
lines = []
try:
    source = locate(sys.argv[1], revision=sys.argv[2] or None, report=lines.append)
except ExportError as error:
    print(json.dumps({"error": str(error), "lines": lines}))
else:
    found = {name: getattr(source, name) for name in ("name", "revision", "license")}
    files = sorted(path.name for path in source.folder.iterdir())
    print(json.dumps({**found, "files": files, "lines": lines}))
"""

EXPORT = """
import sys
from pathlib import Path
from exporter.export import export_model
export_model(sys.argv[1], Path(sys.argv[2]))
"""


def run(program: str, url: str, cache: Path, *arguments: str) -> str:
    """Runs a program against a hub, with an empty environment but for what it needs."""
    environment = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(ROOT),
    }
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def find(url: str, cache: Path, model: str = MODEL, revision: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(LOCATE, url, cache, model, revision))
    return answer


def test_a_model_is_downloaded_by_its_id(hub: Hub, tmp_path: Path) -> None:
    found = find(hub.url, tmp_path)
    assert found["name"] == MODEL
    assert found["revision"] == COMMIT
    assert found["license"] == "apache-2.0"
    assert set(hub.downloaded) == set(hub.files) - set(TEMPTATIONS)
    assert found["files"] == sorted(set(hub.files) - set(TEMPTATIONS))
    assert COMMIT[:12] in found["lines"][0]


def test_bin_weights_are_taken_where_there_are_no_others(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    assert "pytorch_model.bin" in find(hub.url, tmp_path)["files"]


def test_shards_are_taken_with_their_index(hub: Hub, tmp_path: Path) -> None:
    shard = hub.files.pop("model.safetensors")
    hub.files["model-00001-of-00001.safetensors"] = shard
    hub.files["model.safetensors.index.json"] = b"{}"
    files = find(hub.url, tmp_path)["files"]
    assert "model-00001-of-00001.safetensors" in files
    assert "model.safetensors.index.json" in files


def test_a_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    assert find(hub.url, tmp_path, revision="v1")["revision"] == COMMIT


def test_a_download_is_kept_for_when_the_hub_is_out_of_reach(hub: Hub, tmp_path: Path) -> None:
    find(hub.url, tmp_path)
    found = find("http://127.0.0.1:9", tmp_path)
    assert found["revision"] == COMMIT
    assert "out of reach" in found["lines"][0]


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    error = find("http://127.0.0.1:9", tmp_path)["error"]
    assert "http://127.0.0.1:9 cannot be reached" in error
    assert "\n" not in error


def test_a_wrong_id_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    error = find(hub.url, tmp_path, model="somebody/nothing")["error"]
    assert "no model somebody/nothing" in error
    assert "\n" not in error


def test_a_wrong_revision_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    assert "has no revision v9" in find(hub.url, tmp_path, revision="v9")["error"]


def test_what_cannot_be_an_id_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    error = find(hub.url, tmp_path, model="two words")["error"]
    assert "'two words' is neither" in error


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((401, "RepoNotFound"), "private: log in"),
        ((500, ""), "answered 500"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(
    hub: Hub, tmp_path: Path, refusal: tuple[int, str], said: str
) -> None:
    hub.refusal = refusal
    assert said in find(hub.url, tmp_path)["error"]


def test_a_repository_without_weights_is_refused(hub: Hub, tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        del hub.files[name]
    assert "no PyTorch weights" in find(hub.url, tmp_path)["error"]


def test_what_is_no_clip_is_refused_before_its_weights_are_downloaded(
    hub: Hub, tmp_path: Path
) -> None:
    hub.files["config.json"] = b'{"model_type": "bert"}'
    found = find(hub.url, tmp_path)
    assert "somebody/small-clip on the hub is a model of type 'bert': only CLIP" in found["error"]
    assert hub.downloaded == ["config.json"]
    assert found["lines"] == []


def test_a_repository_without_a_configuration_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    assert "has no config.json" in find(hub.url, tmp_path)["error"]


def test_a_full_disk_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
    error = json.loads(run(limited + LOCATE, hub.url, tmp_path, MODEL, ""))["error"]
    assert f"{MODEL} could not be downloaded to {tmp_path}" in error
    assert "\n" not in error


def test_an_export_by_id_records_where_it_came_from(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "model"
    run(EXPORT, hub.url, tmp_path / "cache", MODEL, str(out))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["name"] == MODEL
    assert manifest["revision"] == COMMIT
    assert manifest["license"] == "apache-2.0"
    assert manifest["fidelity"]["image"]["min_cosine"] > 0.9999


def quiet(_line: str) -> None:
    pass


def test_a_folder_is_named_by_its_name(vision_checkpoint: Path) -> None:
    source = locate(str(vision_checkpoint), revision=None, report=quiet)
    assert source.name == "vision"
    assert source.revision == ""
    assert source.license == "apache-2.0"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ('---\r\nlicense: "cc-by-4.0"\r\n---\r\n', "cc-by-4.0"),
        ("---\nlicense:\n- mit\n---\n", ""),
        ("---\ntags: [a]\n---\nlicense: mit\n", ""),
        ("# No head\n", ""),
        ("\udcff", ""),
    ],
)
def test_the_licence_stands_in_the_head_of_the_card(
    own_folder: Path, card: str, expected: str
) -> None:
    (own_folder / "README.md").write_bytes(card.encode(errors="surrogateescape"))
    assert locate(str(own_folder), revision=None, report=quiet).license == expected


def test_folders_that_are_none_are_sentences(vision_checkpoint: Path, tmp_path: Path) -> None:
    for nowhere in (str(tmp_path / "nowhere"), "~/nowhere", "~nobody-here/model"):
        with pytest.raises(ExportError, match="There is no folder"):
            locate(nowhere, revision=None, report=quiet)
    with pytest.raises(ExportError, match="is a file"):
        locate(str(vision_checkpoint / "config.json"), revision=None, report=quiet)
    with pytest.raises(ExportError, match=r"has no config\.json"):
        locate(str(tmp_path), revision=None, report=quiet)
    with pytest.raises(ExportError, match="only models of the hub"):
        locate(str(vision_checkpoint), revision="main", report=quiet)
