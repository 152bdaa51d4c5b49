"""Sizes, memory and time of a run on paper."""
