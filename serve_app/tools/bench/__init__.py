"""`camera-edit bench engine`: measures the engine's optimizations on this machine. Needs no Ray."""
