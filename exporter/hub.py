"""Where a checkpoint comes from: a folder on this machine, or the Hugging Face hub."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exporter.errors import ExportError, first_line

Report = Callable[[str], None]
"""Takes one line about what happens now."""

CONFIG: Final = "config.json"
MODEL_CARD: Final = "README.md"

BOTH_TOWERS: Final = "clip"
"""The model type of a checkpoint with both towers."""

_CLIP_TYPES: Final = (BOTH_TOWERS, "clip_vision_model")

# In the order of preference; a checkpoint often carries the same weights several times.
_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SMALL_FILES: Final = (
    CONFIG,
    MODEL_CARD,
    "locator.safetensors",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)

# A model card begins with YAML between two lines of dashes.
_HEAD: Final = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENSE: Final = re.compile(r"""^license:[ \t]*["']?([\w.+-]+)""", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        folder: Its files.
        name: The hub id, or the folder's name.
        revision: The hub's commit, or "".
        license: As its model card names it, or "".
    """

    folder: Path
    name: str
    revision: str
    license: str


def locate(model: str, *, revision: str | None, report: Report) -> Source:
    """Finds a checkpoint, and downloads it where it is a hub id.

    Args:
        model: A folder, or an id such as "openai/clip-vit-base-patch32".
        revision: A branch, tag or commit of the hub's repository; its main branch by default.
        report: Told about a download.

    Raises:
        ExportError: There is no such folder or id, it is no CLIP, it is not open to this user, or
            the hub cannot be reached.
    """
    try:
        folder = Path(model).expanduser()
    except RuntimeError:  # ~somebody, whom this machine does not know
        raise ExportError(f"There is no folder {model}.") from None
    if folder.exists():
        return _local(folder, revision)
    if model.startswith((".", "~", "/")) or model.count("/") > 1:
        raise ExportError(f"There is no folder {model}.")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (the exporter extra)

    with _hub_errors(model, revision):
        files = _choose(model, revision, report)
        downloaded = Path(snapshot_download(model, revision=revision, allow_patterns=files))
    return Source(
        folder=downloaded,
        name=model,
        revision=downloaded.name,  # the hub's cache names a snapshot by its commit
        license=_license(downloaded),
    )


def _local(folder: Path, revision: str | None) -> Source:
    if revision is not None:
        raise ExportError(f"{folder} is a folder; only models of the hub have revisions.")
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file: give the folder of the checkpoint.")
    model_type(folder)
    name = folder.resolve().name or "model"
    return Source(folder=folder, name=name, revision="", license=_license(folder))


def model_type(folder: Path, *, called: str = "") -> str:
    """What kind of CLIP a checkpoint is; anything else is refused.

    Args:
        folder: Holds `config.json`.
        called: What the error messages call it, by default the folder's path.

    Returns:
        `BOTH_TOWERS`, or the type of a vision tower alone.

    Raises:
        ExportError: It is no checkpoint, or no CLIP.
    """
    called = called or str(folder)
    try:
        found = json.loads((folder / CONFIG).read_bytes())["model_type"]
    except FileNotFoundError:
        raise ExportError(f"{called} has no {CONFIG}: it is no transformers checkpoint.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"The {CONFIG} of {called} does not say what model it configures: {error!r}."
        ) from error
    if found not in _CLIP_TYPES:
        raise ExportError(
            f"{called} is a model of type {found!r}: only CLIP can be exported "
            f"({' or '.join(_CLIP_TYPES)})."
        )
    return str(found)


def _choose(model: str, revision: str | None, report: Report) -> list[str] | None:
    """The files worth downloading, or None for whatever an earlier download has left here."""
    from huggingface_hub import (  # noqa: PLC0415
        HfApi,
        snapshot_download,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
    except HfHubHTTPError:
        raise
    except OSError:  # no connection, or no answer in time
        if not isinstance(try_to_load_from_cache(model, CONFIG, revision=revision), str):
            raise
        report(f"The hub is out of reach: using the copy of {model} from an earlier download.")
        return None
    # The small file says whether the large ones are worth it.
    found = snapshot_download(model, revision=revision, allow_patterns=[CONFIG])
    model_type(Path(found), called=f"{model} on the hub")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    weights = next((name for name in _WEIGHTS if name in sizes), None)
    if weights is None:
        raise ExportError(
            f"{model} on the hub has no PyTorch weights (model.safetensors or pytorch_model.bin)."
        )
    suffix = ".safetensors" if "safetensors" in weights else ".bin"
    shards = [
        name
        for name in sizes
        if weights.endswith(".index.json")
        and name.startswith(weights.split(".")[0] + "-")
        and name.endswith(suffix)
    ]
    files = [name for name in _SMALL_FILES if name in sizes] + [weights, *shards]
    size_mb = sum(sizes[name] for name in files) / 1e6
    report(f"Downloading {model} at {(info.sha or '')[:12]} ({size_mb:.0f} MB)")
    return files


@contextmanager
def _hub_errors(model: str, revision: str | None) -> Iterator[None]:
    """Turns what the hub's library raises into sentences."""
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError:
        raise ExportError(
            f"{model!r} is neither a folder here nor a model id such as "
            "openai/clip-vit-base-patch32."
        ) from None
    except GatedRepoError:
        raise ExportError(
            f"{model} is gated: accept its terms on {constants.ENDPOINT}/{model}, then log in "
            "with `hf auth login` and export again."
        ) from None
    except RepositoryNotFoundError:
        raise ExportError(
            f"There is no folder {model} here and no model {model} on {constants.ENDPOINT} "
            "(or it is private: log in with `hf auth login`)."
        ) from None
    except RevisionNotFoundError:
        raise ExportError(f"{model} on the hub has no revision {revision}.") from None
    except OSError as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
            raise ExportError(
                f"{constants.ENDPOINT} answered {status} for {model}: try again later."
            ) from error
        if error.errno is not None:  # of this machine's disk; the network's have none
            raise ExportError(
                f"{model} could not be downloaded to {constants.HF_HUB_CACHE}: {error.strerror}."
            ) from error
        raise ExportError(
            f"{constants.ENDPOINT} cannot be reached, and {model} is no folder here: check the "
            "connection, or copy the checkpoint to this machine and give its folder."
        ) from error
    except RuntimeError as error:  # all that the native downloader of large files ever raises
        raise ExportError(f"{model} could not be downloaded: {first_line(error)}") from error


def _license(folder: Path) -> str:
    """The licence in the head of the model card, or ""."""
    try:
        card = (folder / MODEL_CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    head = _HEAD.match(card)
    line = _LICENSE.search(head[1]) if head else None
    return line[1] if line else ""
