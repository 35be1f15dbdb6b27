"""Scenarios: which dense tasks come when, as Avalanche streams."""
