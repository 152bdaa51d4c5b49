"""Checkpoints in Hugging Face's format into NeMo 2's and back."""
