"""Which loss teaches what: students of one start and one text under every loss, measured on arithmetic and text."""
