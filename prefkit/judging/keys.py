"""Which server may be sent which key. A config can come from anybody, and names both; so it is the
environment of whoever runs it that says which of them go together, never the config.
"""

import ipaddress
import os
from urllib.parse import urlsplit

from prefkit.core import ConfigError

KEY_HOSTS = "PREFKIT_KEY_HOSTS"  # such as MY_KEY@api.my-company.com,OTHER@host:8443
BELONG = {  # whose key belongs to whom, whatever the environment says
    ("OPENAI_API_KEY", "api.openai.com"),
    ("NVIDIA_API_KEY", "integrate.api.nvidia.com"),
}


def is_loopback(host: str) -> bool:
    "Whether a host is this machine."
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_key_host(
    address: str,  # of a server
    key_env: str,  # the variable of the environment that holds a key for it
):
    """Raise `ConfigError` where a key that is set would be sent to a host that it is not allowed to
    be sent to, or in the clear over a network.
    """
    url = urlsplit(address)
    host = url.hostname or ""
    if not key_env or not os.environ.get(key_env, "").strip() or is_loopback(host):
        return
    if url.scheme != "https":
        raise ConfigError(
            f"{key_env} would be sent to {host} in the clear. Use https, or leave key_env empty.",
            field="key_env",
            reason="not encrypted",
        )
    place = f"{host}:{url.port}" if url.port not in (None, 443) else host
    if (key_env, place) in BELONG or f"{key_env}@{place}" in _allowed():
        return
    raise ConfigError(
        f"{key_env} is not sent to {place}: a config names both, and anybody may have written it. "
        f"If you trust that server with this key, say so: export {KEY_HOSTS}={key_env}@{place}",
        field="key_env",
        reason="host is not allowed",
    )


def _allowed() -> set[str]:
    return {one.strip() for one in os.environ.get(KEY_HOSTS, "").split(",") if one.strip()}
