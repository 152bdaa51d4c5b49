"""The adapter to Megatron-Bridge, the training loop of NVIDIA's containers since 26.04, which have no NeMo 2.

``distill`` is the entry; ``step`` has what Bridge's ``pretrain`` calls, and needs Megatron-core alone.
"""
