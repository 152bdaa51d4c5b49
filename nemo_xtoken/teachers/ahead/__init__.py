"""A teacher in the student's processes that reads the next micro-batch while the student goes back through one."""
