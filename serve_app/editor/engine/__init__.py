"""The loop that runs edits packed, and all that stands around it. Knows neither Ray nor HTTP."""
