"""The rewriter: Qwen3-VL makes a precise instruction of an instruction and its pictures. If it fails, edits go on."""
