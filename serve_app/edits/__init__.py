"""The vocabulary of an edit, pure: no Ray, no HTTP, no torch models."""
