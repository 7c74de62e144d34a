"""`camera-edit bench engine`: what the engine's levers bring on this machine. Needs no Ray."""
