"""The editor: the LoRA-fused pipeline and the engine that runs its edits. Only `deployment` and `metrics` know Ray."""
