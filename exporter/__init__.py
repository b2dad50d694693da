"""From a CLIP checkpoint to the verified ONNX artifact that the server loads."""

import inference  # noqa: F401  # before onnxruntime: it has it report nothing
