"""Rows of one file or data set, streamed: `nemo_xtoken.data.sources` has the table of which reader reads which files.

Every reader yields what is there, one after the other: the text of each row, "" for an empty one, None for a place
without a row, and for a row that is no document the InputError that says why, with its place.  It raises InputError
where the file itself cannot be read on.
"""
