"""Loads an edit model from disk onto its device, with LoRA fusion and quantization."""
