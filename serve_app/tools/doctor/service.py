"""Checks the Serve file, and what it needs around it: its port, API keys, Ray's record of a cluster, and Redis."""

import errno
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from serve_app.config import AppSettings, RedisStoreSettings
from serve_app.errors import ConfigError, StartupError
from serve_app.ingress.auth import (
    API_KEYS,
    KEYS_VARIABLE,
    OPERATOR_KEYS,
    Keys,
    KeySource,
    configured_keys,
    is_loopback,
    require_keys,
)
from serve_app.jobs.stores.redis_store import PASSWORD_VARIABLE
from serve_app.tools.check import ServeFile, check_file
from serve_app.tools.doctor.finding import Finding
from serve_app.tools.recorded_cluster import ADDRESS_VARIABLE, answers, stale_record

REDIS_TIMEOUT_S = 3.0
OLDEST_REDIS = 6


def check_serve_file(path: Path) -> tuple[Finding, ServeFile | None]:
    """Run `camera-edit check`."""
    try:
        return Finding("Serve file", str(path)), check_file(path)
    except ConfigError as problem:
        fix = f"correct these keys, then: camera-edit check {path}"
        return Finding("Serve file", f"{problem}\nwhat depends on the file was not checked", fix), None


def check_port(host: str, port: int) -> Finding:
    """Whether Serve's proxy could listen there."""
    where = f"{host}:{port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As servers do: connections of an earlier one that are being closed do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as problem:
        if problem.errno != errno.EADDRINUSE:
            fix = "set http_options.host to an address of this machine, and http_options.port to one above 1023"
            return Finding("port", f"{where} cannot be used: {problem.strerror or problem}", fix)
        return _taken(where, port)
    return Finding("port", f"{where} is free")


def _taken(where: str, port: int) -> Finding:
    owner = _listener(port)
    if owner is None:
        return Finding("port", f"{where} is in use", f"sudo ss -ltnp 'sport = :{port}', or set http_options.port")
    message = f"{where} is in use by process {owner.pid} ({owner.name()})"
    if owner.name().startswith("ray::"):
        return Finding("port", message, "stop the service that runs already: serve shutdown -y")
    return Finding("port", message, f"kill {owner.pid}, or set http_options.port to another")


def _listener(port: int) -> psutil.Process | None:
    try:
        connections = psutil.net_connections("tcp")
        listening = [each for each in connections if each.status == psutil.CONN_LISTEN]
        pids = [each.pid for each in listening if each.laddr and each.laddr.port == port]
        return psutil.Process(pids[0]) if pids and pids[0] is not None else None
    except psutil.Error:
        return None


def check_keys(host: str, settings: AppSettings) -> Finding:
    """Whether the service could start on `host` with the keys in this environment and in the file's key files."""
    keys, fault = _keys(settings.api_keys_file, API_KEYS)
    _, operator_fault = _keys(settings.operator_keys_file, OPERATOR_KEYS)
    for each in (fault, operator_fault):
        if each is not None:
            return each
    try:
        require_keys(keys, host, settings.allow_anonymous)
    except StartupError as problem:
        return Finding("keys", str(problem), f'export {KEYS_VARIABLE}="$(openssl rand -hex 32)"')
    if keys is not None:
        return Finding("keys", f"API keys: {len(keys())}")
    reason = f"only this machine reaches {host}" if is_loopback(host) else "allow_anonymous: true"
    return Finding("keys", f"no API keys: {reason}")


def _keys(setting: str | None, source: KeySource) -> tuple[Keys | None, Finding | None]:
    try:
        return configured_keys(setting, source), None
    except ConfigError as problem:
        file = os.environ.get(source.file_variable, "").strip() or setting
        target = f'export {source.variable}="$(openssl rand -hex 32)"'
        if file is not None and "file" in str(problem):
            target = f"openssl rand -hex 32 >> {file}"
        return None, Finding("keys", str(problem), target)


def check_ray() -> Finding:
    """Whether `serve run` would wait for a cluster that is gone."""
    address = os.environ.get(ADDRESS_VARIABLE, "")
    if address and address not in ("auto", "local") and "://" not in address and not answers(address):
        return Finding("Ray", f"{ADDRESS_VARIABLE} is {address}, which does not answer", f"unset {ADDRESS_VARIABLE}")
    record = stale_record()
    if record is not None:
        return Finding("Ray", f"{record} names a cluster that does not answer", f"rm {record}")
    return Finding("Ray", "no record of a cluster that is gone")


def check_redis(store: RedisStoreSettings) -> Finding:
    """Whether Redis answers, and is one that keeps jobs."""
    place = urlsplit(store.url)
    where = f"{place.hostname}:{place.port or 6379}"  # never the whole URL, which may hold a password
    try:
        with Redis.from_url(
            store.url,
            password=os.environ.get(PASSWORD_VARIABLE),
            socket_connect_timeout=REDIS_TIMEOUT_S,
            socket_timeout=REDIS_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ) as redis:
            about = redis.info()
    except AuthenticationError as problem:
        return Finding("Redis", f"{where}: {problem}", f"export {PASSWORD_VARIABLE}=PASSWORD")
    except (RedisError, ValueError) as problem:
        fix = f"redis-server --port {place.port or 6379} --appendonly yes, on that machine; or correct jobs.store.url"
        return Finding("Redis", f"{where} does not answer: {problem}", fix)
    return _judge_redis(where, about)


def _judge_redis(where: str, about: dict[str, object]) -> Finding:
    version = str(about.get("redis_version"))
    if int(version.partition(".")[0]) < OLDEST_REDIS:
        return Finding("Redis", f"{where} is Redis {version}", f"install Redis {OLDEST_REDIS} or newer")
    policy = about.get("maxmemory_policy")
    if about.get("maxmemory") and policy != "noeviction":
        host, _, port = where.rpartition(":")
        fix = f"redis-cli -h {host} -p {port} config set maxmemory-policy noeviction"
        return Finding("Redis", f"{where} removes jobs when its memory is full: maxmemory-policy {policy}", fix)
    return Finding("Redis", f"{where} answers, Redis {version}")
