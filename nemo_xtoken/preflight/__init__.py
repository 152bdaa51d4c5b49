"""Whether a run can work, found out on a login node: no GPU, no NeMo, nothing of the run's own code.

`check` reads the recipe's YAML with the overrides (`settings`), what lies beside checkpoints and tokenizers (`models`),
and looks at everything that can be wrong; whatever needs a package that is not here is said to be left out.
"""
