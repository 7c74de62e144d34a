"""The editor: the LoRA-fused pipeline and the engine that runs its edits packed. Only `deployment` knows Ray."""
