"""The adapter to Megatron-Bridge, the training loop of NVIDIA's containers since 26.04, which have no NeMo 2.

``distill_bridge`` is the entry; ``forward_step`` has what Bridge's ``pretrain`` calls, and needs only Megatron-core.
"""
