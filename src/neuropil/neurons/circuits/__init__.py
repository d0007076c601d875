"""Circuits: networks with an explicit state."""
