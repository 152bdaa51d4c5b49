"""Whether a run can work, found out on a login node: no GPU, no NeMo, nothing of the run's own code.

`check` reads the recipe's YAML with the overrides (`settings`), what lies beside checkpoints and tokenizers (`models`),
and checks everything that can be wrong; a check that needs a missing package is reported as skipped.
"""
