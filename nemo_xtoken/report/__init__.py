"""What a person reads at the end of a run.  Needs neither torch nor NeMo."""
