"""What a student with LoRA adapters needs of every training loop, whichever framework's adapters they are."""
