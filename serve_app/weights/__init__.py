"""Weights: where they are found, their models' architectures, and the GPU memory that they are loaded into."""
