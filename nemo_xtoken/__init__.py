"""nemo_xtoken: cross-tokenizer distillation for NVIDIA NeMo, at Megatron scale.

Importing this package is cheap: nothing of torch, NeMo or Megatron is loaded before it is used.
"""

__version__ = "0.1.0"
