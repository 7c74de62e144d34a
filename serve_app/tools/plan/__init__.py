"""`camera-edit plan`: what a mix of edits needs at a number of GPUs, computed and simulated."""
