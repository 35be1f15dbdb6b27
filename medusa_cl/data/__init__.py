"""Data: what an image and its targets are on disk, and how they come from there."""
