"""The embedding server: encoded images in, unit-length CLIP vectors out, over gRPC."""

import os

# Since 1.29 onnxruntime keeps an identifier of the machine on its disk and reports to its maker
# which models run there, unless it is told not to before it is imported. Whoever wants that sets 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
