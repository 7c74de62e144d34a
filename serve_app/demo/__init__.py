"""`camera-edit demo`: the whole service on one machine with tiny random weights, one edit in each mode."""
