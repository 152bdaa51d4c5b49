"""Hugging Face checkpoints as files: weights, configuration, tokenizer.  No framework is loaded, no model is built."""
