"""`camera-edit demo`: the whole service on one machine, with tiny weights that know a toy world."""
