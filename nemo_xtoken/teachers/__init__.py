"""Where a teacher's hidden states come from.  These modules may use megatron-core, and nothing of NeMo."""
