"""Importing activations that other tools wrote into a store."""
