"""Weights: where they are found, what their files say, their models' architectures, and the GPU memory that they are
loaded into."""
