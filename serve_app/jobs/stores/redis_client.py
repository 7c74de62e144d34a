"""The connection of a RedisStore."""

import os

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from serve_app.errors import ConfigError

PASSWORD_VARIABLE = "CAMERA_EDIT_REDIS_PASSWORD"

MAX_CONNECTIONS = 32
"""Commands that are on their way at once; others wait for their turn."""

SOCKET_TIMEOUT_S = 5.0
"""For one command or answer, the pictures of a large job included."""

NUM_RETRIES = 8
MAX_RETRY_PAUSE_S = 0.5


def open_redis(url: str) -> Redis:
    """A client that connects at its first use, and again for some 3 seconds where the connection breaks. The pauses are
    short, so that it finds soon that Redis is back."""
    retry = Retry(ExponentialWithJitterBackoff(base=0.1, cap=MAX_RETRY_PAUSE_S), NUM_RETRIES)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=None,
            password=os.environ.get(PASSWORD_VARIABLE),
            socket_timeout=SOCKET_TIMEOUT_S,
            retry=retry,
        )
    except ValueError as problem:
        raise ConfigError(f"jobs.store.url: {problem}") from problem
    return Redis.from_pool(pool)
