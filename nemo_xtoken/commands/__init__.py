"""The command line: `xtoken VERB`, `nemo xtoken VERB` and `nemo llm distill`."""
