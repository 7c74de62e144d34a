"""The commands of `camera-edit`. They may import every package; only `cli` imports them."""
