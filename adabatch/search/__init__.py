"""Metaparameter search at one batch size."""
