"""Strategies: how a stream of dense tasks is learnt, as Avalanche plugins and templates."""
