"""The arguments that a run can have: names, kinds and defaults, read from source without importing it."""
