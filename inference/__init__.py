"""The embedding server: encoded images in, unit-length CLIP vectors out, over gRPC."""
