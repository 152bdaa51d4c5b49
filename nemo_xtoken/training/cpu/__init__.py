"""The real NeMo stack on a CPU with gloo; the only place that patches other packages.

``megatron_import`` lets it be imported, ``runtime`` lets it run, ``layers`` stand in for Transformer Engine's.
"""
