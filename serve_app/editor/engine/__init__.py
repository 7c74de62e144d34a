"""The engine that runs edits in packs: loop, scheduler, tickets and failure handling. Knows neither Ray nor HTTP."""
