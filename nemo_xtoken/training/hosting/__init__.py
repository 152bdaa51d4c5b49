"""A frozen teacher in the processes of a run: its configuration as the run has it, and how it is loaded."""
