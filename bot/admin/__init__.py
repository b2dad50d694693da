"""What admins decide, and what people want forgotten."""
