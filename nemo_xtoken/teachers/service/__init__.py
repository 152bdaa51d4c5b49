"""A teacher as a service: messages, keys, the side of a replica and the side of a student."""
