"""Transformers: loading them, their texts and tokens, and reading their activations."""
