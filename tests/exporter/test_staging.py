import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.errors import ExportError
from exporter.staging import check_replaceable, staged, write_manifest
from inference.artifact import Artifact, Manifest, Precision, Preprocessing, sha256_of
from inference.errors import StartupError


def fill(folder: Path, content: bytes) -> None:
    """Writes what passes for an artifact until onnxruntime sees it."""
    model = folder / "model.onnx"
    model.write_bytes(content)
    manifest = Manifest(
        name="test",
        dimensions=4,
        precision=Precision.FP32,
        opset=18,
        preprocessing=Preprocessing(image_size=8, resize="squash", interpolation="bicubic"),
        sha256={model.name: sha256_of(model)},
    )
    write_manifest(folder, manifest)


def siblings(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def content(out: Path) -> bytes:
    return Artifact.load(out).file("model.onnx").read_bytes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "model"


def test_a_new_folder_appears_whole(out: Path) -> None:
    with staged(out) as folder:
        fill(folder, b"new")
        assert not out.exists()
        assert folder.parent == out.parent
    assert content(out) == b"new"
    assert siblings(out) == ["model"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_older_artifact_is_replaced(out: Path) -> None:
    for version in (b"old", b"new"):
        with staged(out) as folder:
            fill(folder, version)
    assert content(out) == b"new"
    assert siblings(out) == ["model"]


def test_an_empty_folder_is_filled(out: Path) -> None:
    out.mkdir(parents=True)
    with staged(out) as folder:
        fill(folder, b"new")
    assert content(out) == b"new"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, RuntimeError, ExportError])
def test_a_failing_export_leaves_the_older_artifact(
    out: Path, failure: type[BaseException]
) -> None:
    with staged(out) as folder:
        fill(folder, b"old")
    with pytest.raises(failure), staged(out) as folder:
        fill(folder, b"new")
        raise failure
    assert content(out) == b"old"
    assert siblings(out) == ["model"]


def test_a_failing_swap_brings_the_older_artifact_back(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(out) as folder:
        fill(folder, b"old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(errno.EIO, "the disk is dying")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="dying"), staged(out) as folder:
        fill(folder, b"new")
    assert content(out) == b"old"
    assert siblings(out) == ["model"]


def test_a_killed_swap_is_put_right_by_the_next_run(out: Path) -> None:
    with staged(out) as folder:
        fill(folder, b"old")
    out.rename(out.parent / ".model.former-12345678")  # killed between the two renames
    with pytest.raises(RuntimeError), staged(out):
        assert content(out) == b"old"
        raise RuntimeError
    assert content(out) == b"old"
    assert siblings(out) == ["model"]


def test_a_former_artifact_that_was_replaced_is_removed(out: Path) -> None:
    with staged(out) as folder:
        fill(folder, b"old")
    former = out.parent / ".model.former-12345678"
    former.mkdir()
    with staged(out) as folder:
        fill(folder, b"new")
    assert siblings(out) == ["model"]


KILLED = """
import sys
from pathlib import Path
from exporter.staging import staged

with staged(Path(sys.argv[1])) as folder:
    (folder / "model.onnx").write_bytes(b"half a model")
    print(folder.name, flush=True)
    sys.stdin.read()  # until this process is killed, or told to go on
"""


def start(out: Path) -> tuple["subprocess.Popen[str]", str]:
    """Starts an export in another process; returns it with the name of its partial folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_export_leaves_nothing_that_loads(out: Path, sent: signal.Signals) -> None:
    process, partial = start(out)
    with process:
        process.send_signal(sent)
        process.communicate()
    assert not out.exists()
    for path in out.parent.iterdir():
        with pytest.raises(StartupError):
            Artifact.load(path)
    with staged(out) as folder:
        assert partial not in siblings(out)
        fill(folder, b"new")
    assert siblings(out) == ["model"]


def test_an_export_that_still_runs_is_not_swept_away(out: Path) -> None:
    process, partial = start(out)
    with process:
        with staged(out) as folder:
            fill(folder, b"new")
        assert siblings(out) == [partial, "model"]
        process.kill()
        process.communicate()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(out: Path, code: int) -> None:
    with pytest.raises(ExportError, match=r"disk is full: .*model could not be"), staged(out):
        raise OSError(code, os.strerror(code))
    assert siblings(out) == []


def test_running_out_of_room_for_real(out: Path) -> None:
    """The kernel's own refusal, by a limit on the size of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(ExportError, match="disk is full"), staged(out) as folder:
            fill(folder, bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert siblings(out) == []


def test_other_errors_are_not_called_a_full_disk(out: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(out) as folder:
        (folder / "missing").read_bytes()


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"), staged(tmp_path / "file" / "model"):
        pass


def test_foreign_folders_are_left_alone(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="no exported model"), staged(out):
        pass
    assert (out / "thesis.txt").read_text() == "years of work"


def test_foreign_files_beside_an_artifact_are_left_alone(out: Path) -> None:
    with staged(out) as folder:
        fill(folder, b"old")
    (out / "notes.txt").write_text("notes")
    with pytest.raises(ExportError, match=r"notes\.txt"):
        check_replaceable(out)


def test_somebody_elses_manifest_is_no_artifact(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(ExportError, match="left alone"):
        check_replaceable(out)


def test_files_and_links_are_no_folders(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("")
    link.symlink_to(tmp_path / "nowhere")
    for path in (file, link):
        with pytest.raises(ExportError, match="is no folder"):
            check_replaceable(path)


def test_files_that_appear_meanwhile_are_left_alone(out: Path) -> None:
    with pytest.raises(ExportError, match="left alone"), staged(out) as folder:
        fill(folder, b"new")
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    assert siblings(out) == ["model"]
    assert (out / "thesis.txt").exists()
