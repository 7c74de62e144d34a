"""From weights on disk to an edit model on its device: LoRA fusion and quantization."""
