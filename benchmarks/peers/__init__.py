"""Other model servers, side by side with ours."""
