"""The real NeMo stack on a CPU with gloo; the only place that patches other packages."""
