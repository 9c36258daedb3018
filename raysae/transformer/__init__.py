"""Transformers: loading models, reading texts and tokens, and capturing activations."""
