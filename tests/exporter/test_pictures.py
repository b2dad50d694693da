import io
import subprocess
import sys
from pathlib import Path

from PIL import Image

from exporter.pictures import CALIBRATION_TEXTS, TEXTS, drawn


def test_the_pictures_are_the_same_every_time() -> None:
    assert list(drawn("verify", 4)) == list(drawn("verify", 4))


def test_no_picture_both_sets_a_range_and_judges_it() -> None:
    assert set(drawn("verify", 6)).isdisjoint(drawn("calibrate", 6))
    assert set(TEXTS).isdisjoint(CALIBRATION_TEXTS)


def test_the_pictures_come_in_several_formats_and_sizes() -> None:
    images = [Image.open(io.BytesIO(data)) for data in drawn("verify", 14)]
    assert {image.format for image in images} == {"PNG", "JPEG"}
    assert len({image.size for image in images}) >= 5


def test_drawing_and_the_command_need_no_torch() -> None:
    """So that a wrong argument is answered at once, and the server's machine can draw."""
    program = (
        "import sys\n"
        "import exporter, exporter.export, exporter.pictures, exporter.preprocessing\n"
        "import exporter.hub, exporter.staging, exporter.training.art, exporter.training.mapart\n"
        "heavy = {'torch', 'transformers', 'optimum', 'onnx', 'onnxruntime', 'huggingface_hub'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
