"""`camera-edit edit`: sends files to a running service and writes the pictures that it returns."""
