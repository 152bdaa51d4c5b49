"""A run as plain data: its settings, layout, models, sizes on paper, and the records in its folder.  No torch."""
