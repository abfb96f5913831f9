"""
Which host is given which token, and no other. A redirect is asked about anew, so a token never travels along.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import SecretStr

HUGGING_FACE = "https://huggingface.co"
CIVITAI = "https://civitai.com"


class Tokens:
    """
    Tokens by origin (`https://host`, with the port where it is not the usual one). Blank tokens count as none.
    """

    def __init__(self, by_origin: Mapping[str, SecretStr | None]) -> None:
        self._known = {
            origin_of(origin): token.get_secret_value().strip()
            for origin, token in by_origin.items()
            if token is not None and token.get_secret_value().strip()
        }

    def headers(self, url: str) -> dict[str, str]:
        """
        Return the Authorization header for a URL, none for a host without a token.
        """
        token = self._known.get(origin_of(url))
        return {"Authorization": f"Bearer {token}"} if token else {}

    def has(self, url: str) -> bool:
        """
        Tell whether there is a token for the host of a URL.
        """
        return origin_of(url) in self._known


def origin_of(url: str) -> str:
    """
    Return scheme, host and port of a URL in one spelling.
    """
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"
