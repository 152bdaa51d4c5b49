"""Scores of a student by lm-evaluation-harness, beside those of the paper.  Needs the extra ``evaluate``, no NeMo.

`benchmark_columns` maps the columns of the paper's table to tasks and metrics, `published` has the table, `local_data`
lets the harness read files instead of the hub, `harness` runs it, `results` keeps scores on disk, `scored_model` and
`suite` evaluate a model and the checkpoints of a run, `table` prints all of it.
"""
