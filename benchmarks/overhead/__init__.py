"""What a call costs in the server beside decoding and the model."""
