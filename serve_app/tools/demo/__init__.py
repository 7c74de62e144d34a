"""`camera-edit demo`: the whole service on one machine, with tiny weights trained on a toy world."""
