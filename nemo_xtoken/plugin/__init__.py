"""Adapters to training frameworks; everything below knows none of them."""
