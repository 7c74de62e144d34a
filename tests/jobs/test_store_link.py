"""The settings determine the store."""

import asyncio
from pathlib import Path

from serve_app.config import RedisStoreSettings, SqliteStoreSettings
from serve_app.jobs.store_link import open_store
from serve_app.jobs.stores.redis_store import RedisStore
from serve_app.jobs.stores.sqlite_store import SqliteStore


def test_each_kind_has_its_store_which_touches_nothing_yet(tmp_path: Path) -> None:
    async def scenario() -> None:
        file, server = SqliteStoreSettings(path=str(tmp_path / "a" / "file")), "redis://127.0.0.1:1/0"
        for settings, kind in ((file, SqliteStore), (RedisStoreSettings(kind="redis", url=server), RedisStore)):
            store = open_store(settings)
            assert isinstance(store, kind)
            await store.close()

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []
