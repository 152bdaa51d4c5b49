"""The adapter to NeMo 2.x: nemo.collections.llm, Lightning, megatron-core."""
