"""The first run on a GPU: kernels, values, times and memory of the losses, with PyTorch and Triton alone."""

import importlib.util
import sys

#: What the losses import beside PyTorch, whose build for CUDA brings Triton, and what runs the kernels' tests.
NEEDED = ("torch", "numpy", "pyarrow", "safetensors", "tokenizers", "filelock", "rich", "pytest", "hypothesis")

if _missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    _others = " ".join(name for name in _missing if name != "torch")
    sys.exit(
        f"error: missing: {', '.join(_missing)}\n  to fix: in an environment that has PyTorch for CUDA, such as one of "
        f"NVIDIA's images, pip install {_others}"
    )
