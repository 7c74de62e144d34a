"""The rewriter: Qwen3-VL turns an instruction and its pictures into a more precise instruction. An edit continues if it
fails."""
