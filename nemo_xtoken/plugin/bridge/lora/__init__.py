"""A student with Megatron-Bridge's LoRA adapters."""
