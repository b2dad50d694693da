"""The model folder that the exporter writes and the server loads: its manifest and its files.

A folder holds `manifest.json`, `model.onnx` (the vision tower: uint8 pixels [N, H, W, 3] in,
float32 `image_embeds` [N, D] of unit length out) and, where the model reads text too,
`text_model.onnx` (int64 `input_ids` [N, T] in, `text_embeds` [N, D] out) with `tokenizer.json`.
The manifest is written last, so a folder that has one is complete.
"""

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.errors import StartupError

MANIFEST = "manifest.json"
IMAGE_TOWER = "model.onnx"
TEXT_TOWER = "text_model.onnx"
TOKENIZER = "tokenizer.json"

# Readers refuse a folder of a newer format rather than guess at it.
FORMAT = 2


class Precision(StrEnum):
    """The arithmetic that the towers were exported to."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Frozen):
    """How a picture becomes the tower's pixels; scaling to floats is inside the graph.

    Attributes:
        image_size: Side of the square input, in pixels.
        resize: `squash` scales both sides to `image_size`; `crop` scales the shorter side to it
            and keeps the centre square (the original CLIP).
        interpolation: The resampling filter of the reference preprocessing.
        render_margin: First, a clean render of a map is laid on a ground that is wider on each side
            by this share of the render's own width, and higher likewise (`inference.renders`).
    """

    image_size: int = Field(gt=0, le=4096)
    resize: Literal["squash", "crop"]
    interpolation: Literal["bicubic", "bilinear"]
    render_margin: float = Field(default=0.0, ge=0, le=1)


class TextTower(_Frozen):
    """What the server must know to tokenise for the text tower.

    Attributes:
        context_length: Tokens that the tower reads; longer texts are cut, shorter ones padded.
        pad_token_id: The token that fills up the context.
    """

    context_length: int = Field(gt=0)
    pad_token_id: int = Field(ge=0)


class Calibration(_Frozen):
    """What the thresholds were measured to mean, on queries that did not choose them.

    Each query was asked twice: with its map in the archive, and without it. A precision is None
    where no answer fell into that range.

    Attributes:
        same_precision: Share of the first answers at or above `same` that were right.
        similar_precision: The same from `similar` to `same`.
        nothing_precision: The same below `similar`.
        same_false_match_rate: Share of the queries without their map in the archive that got an
            answer at or above `same`.
        similar_false_match_rate: The same for `similar`.
        same_found: Share of the queries with their map in the archive that got it as their first
            answer, at or above `same`.
        queries: How many queries, good and poor alike.
        archive: How many pictures they searched; more pictures make more false matches.
        pictures: What the queries and the archive were.
    """

    same_precision: float | None = Field(ge=0, le=1)
    similar_precision: float | None = Field(ge=0, le=1)
    nothing_precision: float | None = Field(ge=0, le=1)
    same_false_match_rate: float = Field(ge=0, le=1)
    similar_false_match_rate: float = Field(ge=0, le=1)
    same_found: float = Field(ge=0, le=1)
    queries: int = Field(gt=0)
    archive: int = Field(gt=0)
    pictures: str


class Thresholds(_Frozen):
    """Calibrated decision points on the cosine similarity of two pictures.

    Attributes:
        same: At or above, the pictures show the same map.
        similar: At or above, they are similar; below, nothing is close.
        measured: What the two stand for; None in manifests from before it was recorded.
    """

    same: float = Field(ge=-1, le=1)
    similar: float = Field(ge=-1, le=1)
    measured: Calibration | None = None


class Fidelity(_Frozen):
    """How close the exported tower came to PyTorch on real pictures.

    Attributes:
        min_cosine: The worst cosine similarity over all pictures and batch sizes.
        mean_cosine: The mean.
        pictures: How many pictures were compared.
        batch_sizes: At which batch sizes.
    """

    min_cosine: float
    mean_cosine: float
    pictures: int
    batch_sizes: tuple[int, ...]


class Manifest(_Frozen):
    """Everything that a reader may rely on about an exported model.

    Attributes:
        format: Version of this schema.
        name: The hub id or folder name that it was exported from.
        revision: The checkpoint's commit, or "" where it has none.
        license: The checkpoint's licence as its model card names it, or "".
        dimensions: Length D of the embeddings.
        precision: Arithmetic of the towers.
        opset: ONNX opset of the towers.
        preprocessing: What `inference.preprocess` must do.
        text: Present exactly where there is a text tower.
        thresholds: Present where they were measured.
        fidelity: The exporter's verification, per tower ("image", "text").
        sha256: Hex digest of every other file in the folder, by file name.
        tools: Versions of what exported it, by package name.
    """

    format: int = FORMAT
    name: str = Field(min_length=1)
    revision: str = ""
    license: str = ""
    dimensions: int = Field(gt=0)
    precision: Precision
    opset: int
    preprocessing: Preprocessing
    text: TextTower | None = None
    thresholds: Thresholds | None = None
    fidelity: dict[str, Fidelity] = Field(default_factory=dict)
    sha256: dict[str, str]
    tools: dict[str, str] = Field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """Name of the vector space: the model's name and a fingerprint of what makes its vectors.

        That is the image tower, and how pictures are prepared for it.
        """
        # Without the defaults: what a later format adds leaves the earlier ids as they were.
        prepared = self.preprocessing.model_dump_json(exclude_defaults=True)
        made_by = f"{self.sha256[IMAGE_TOWER]} {prepared}"
        return f"{self.name}@{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"


class Artifact(_Frozen):
    """A complete model folder, checked.

    Attributes:
        folder: Where it lies.
        manifest: What it is.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads and checks a model folder.

        Raises:
            StartupError: The folder or a file is missing, damaged, or of a newer format.
        """
        path = folder / MANIFEST
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise StartupError(
                f"{folder} is no exported model: it has no {MANIFEST}. "
                "Make one with `mapseek export MODEL --out DIR`."
            ) from None
        except (OSError, ValueError) as error:
            raise StartupError(f"{path} cannot be read: {error}") from error
        found = data.get("format") if isinstance(data, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise StartupError(
                f"{path} has format {found}, and this mapseek reads up to {FORMAT}: update mapseek."
            )
        try:
            manifest = Manifest.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the document"
            raise StartupError(
                f"{path}: {field}: {first['msg']}. Export the model again."
            ) from error
        artifact = cls(folder=folder, manifest=manifest)
        artifact._check_files()
        return artifact

    def file(self, name: str) -> Path:
        """Path of one of the folder's files."""
        return self.folder / name

    def _check_files(self) -> None:
        required = [IMAGE_TOWER] + ([TEXT_TOWER, TOKENIZER] if self.manifest.text else [])
        for name in sorted({*required, *self.manifest.sha256}):
            expected = self.manifest.sha256.get(name)
            if expected is None:
                raise StartupError(f"{self.folder / MANIFEST} lists no digest for {name}.")
            path = self.folder / name
            if path.parent != self.folder:
                raise StartupError(f"{self.folder / MANIFEST} names a file elsewhere: {name}")
            try:
                found = sha256_of(path) if path.is_file() else None
            except OSError as error:
                raise StartupError(f"{path} cannot be read: {error.strerror}.") from error
            if found is None:
                raise StartupError(f"{path} is missing: export the model again.")
            if found != expected:
                raise StartupError(
                    f"{path} is damaged (its SHA-256 differs from the manifest's): "
                    "export or copy the model again."
                )


def replace_manifest(artifact: Artifact, manifest: Manifest) -> Artifact:
    """Rewrites the manifest of a complete folder, whole or not at all; no other file is touched.

    The digests stay what they were, and with them the model's id: the manifest itself has none.

    Raises:
        StartupError: The folder cannot be written.
    """
    unfinished = artifact.file(f".{MANIFEST}.partial")
    try:
        unfinished.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        unfinished.replace(artifact.file(MANIFEST))
    except OSError as error:
        raise StartupError(f"{artifact.file(MANIFEST)} cannot be written: {error}") from error
    return artifact.model_copy(update={"manifest": manifest})


def sha256_of(path: Path) -> str:
    """Hex SHA-256 digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
