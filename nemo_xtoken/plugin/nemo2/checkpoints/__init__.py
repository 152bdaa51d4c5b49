"""What a NeMo 2 checkpoint is made of, read without running code that it names, and whether it is as it was written."""
