"""From a CLIP checkpoint to the verified ONNX artifact that the server loads."""
