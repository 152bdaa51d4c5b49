"""A teacher by itself, without a student: its processes, and what they compute for a disk or for others."""
