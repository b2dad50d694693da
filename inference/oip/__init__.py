"""The Open Inference Protocol: the server that KServe's and Triton's clients know how to call."""
