"""Pictures of requests: fetched, decoded and resized."""
