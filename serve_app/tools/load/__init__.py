"""`camera-edit bench serve`: load on a running server of either dialect."""
