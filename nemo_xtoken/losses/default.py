"""The loss where none is named; free of torch, for those who look before it is installed."""

__all__ = ["DEFAULT_LOSS"]

#: What won the learning study, and has a certificate for every kind of chunk: docs/learning.md#defaults.
DEFAULT_LOSS = "prefix_kl"
