"""Weights: where they lie, which models they make, and the GPU memory that they are loaded into."""
