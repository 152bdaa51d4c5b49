"""The types of a model's weights."""

__all__ = ["FLOATS"]

#: As safetensors files call them -> as torch and transformers do.
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
