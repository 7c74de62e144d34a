"""From the bytes of a body to checked fields, in both dialects."""
