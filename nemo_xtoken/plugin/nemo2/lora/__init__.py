"""A student with NeMo 2's LoRA adapters: how it gets them, and how it is written for transformers or PEFT."""
