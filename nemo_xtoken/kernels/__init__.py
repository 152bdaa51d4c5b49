"""The passes over a tile of ``[n, V/tp]``, by torch or by Triton; plain tensors in and out, no collectives."""
