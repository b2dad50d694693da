"""What members ask, and what they are told."""
