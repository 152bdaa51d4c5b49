"""LoRA in a run as plain data: its settings, what of them cannot be, and how many numbers are trained."""
