"""The store that a configuration asks for."""

from serve_app.config import RedisStoreSettings, SqliteStoreSettings
from serve_app.jobs.stores.redis_store import RedisStore
from serve_app.jobs.stores.sqlite_store import SqliteStore
from serve_app.jobs.stores.store import Store


def open_store(settings: SqliteStoreSettings | RedisStoreSettings) -> Store:
    """A store that opens its file or connection at its first use."""
    if isinstance(settings, RedisStoreSettings):
        return RedisStore(settings)
    return SqliteStore(settings)
