"""Summaries and pictures: of runs, alignments, W, coverage and certificates.  Needs neither torch nor NeMo."""
