"""Spoilt pictures, messages and frames, and what becomes of them."""
