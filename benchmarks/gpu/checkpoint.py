"""A checkpoint of ViT-B/32's geometry with random weights: speed does not depend on what they are.

`python -m benchmarks.gpu.checkpoint FOLDER`, where the extra `exporter` is installed.
"""

import json
import sys
from pathlib import Path
from typing import Any

# CLIP's own; a rehearsal changes them to something small.
VIT_B32: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "hidden_act": "quick_gelu",
}


def save(folder: Path, **changes: Any) -> None:
    """Saves a `CLIPVisionModelWithProjection` with its image processor, as `transformers` does."""
    import torch  # noqa: PLC0415  only where it is installed
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # noqa: PLC0415

    torch.manual_seed(0)
    config = CLIPVisionConfig(**{**VIT_B32, **changes})
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    square = {"height": config.image_size, "width": config.image_size}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


if __name__ == "__main__":
    save(Path(sys.argv[1]))
