"""Distillation losses across tokenizers: hidden states and output layers in, sums and counts out."""
