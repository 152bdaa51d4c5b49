"""Hidden states on disk, keyed by the digest of a document's text and the place in it.  Nothing of Megatron."""
