"""Kinds of input: how each is read and drawn."""
