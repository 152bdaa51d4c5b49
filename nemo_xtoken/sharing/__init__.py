"""Processes of one piece of work: in a folder one works and the others wait, saying for whom; and all end together."""
