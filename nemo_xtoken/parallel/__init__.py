"""Vocabulary-parallel primitives.  They know torch.distributed's groups and nothing of any training framework."""
