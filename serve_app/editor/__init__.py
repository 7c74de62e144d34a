"""The editor: the LoRA-fused pipeline and the engine that runs edits in packs.

Only `deployment` and `metrics` know Ray.
"""
