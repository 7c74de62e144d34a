"""Where jobs are kept: the interface of a store, and its backends SQLite and Redis."""
