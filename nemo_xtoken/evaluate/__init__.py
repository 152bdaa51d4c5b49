"""Scores of a student by lm-evaluation-harness, beside those of the paper.  Needs the extra ``evaluate``, no NeMo.

`columns` says which task and metric a column of the paper's table is, `published` has the table, `local_data` lets the
harness read files instead of the hub, `harness` runs it, `results` keeps what has been run, `model` and `run` evaluate
a model and the checkpoints of a run, `table` shows all of it.
"""
