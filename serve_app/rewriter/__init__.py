"""The rewriter: Qwen3-VL reads pictures and instruction and answers with a precise one. It may fail; edits go on."""
