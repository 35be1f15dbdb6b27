"""The Hydra configuration, shipped as package data: config.yaml and its groups."""
