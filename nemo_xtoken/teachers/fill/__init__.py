"""A teacher reads prepared text by itself: what it reads, and where its states go."""
