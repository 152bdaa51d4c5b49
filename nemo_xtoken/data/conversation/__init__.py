"""A conversation in the words of a chat template: its parts, their tokens, and what two sides have in common."""
