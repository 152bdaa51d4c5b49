"""The pass over rows: tiles of logits, chunk merge, one fused forward and backward, scale and teacher weights."""
