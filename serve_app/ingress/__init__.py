"""HTTP only: requests in a dialect become edits, results become the dialect's answers. No torch models."""
