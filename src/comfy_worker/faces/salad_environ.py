"""
The environment of comfyui-api -> ours: the names that other programs use too, and so count on the Salad face only. Pure.
"""

from collections.abc import Mapping

from comfy_worker.errors import ConfigInvalid

CHECKS = {"STARTUP_CHECK_MAX_TRIES": 20, "STARTUP_CHECK_INTERVAL_S": 1}
"""Variables of whole numbers above 0, with comfyui-api's defaults."""


def translated(environ: Mapping[str, str]) -> dict[str, str]:
    """
    Return the variables with ours set from comfyui-api's, where ours are not set.

    Raises:
        ConfigInvalid: one of them is no number.
    """
    given = {name: text for name, text in environ.items() if text.strip()}
    return {**_boot_timeout(given), **_comfyui(environ, given), **given}


def _boot_timeout(given: Mapping[str, str]) -> dict[str, str]:
    problems = [
        f"{name} must be a whole number from 1, not {given[name]!r}"
        for name in CHECKS
        if name in given and not _is_count(given[name])
    ]
    if problems:
        raise ConfigInvalid(problems)
    if "STARTUP_CHECK_MAX_TRIES" not in given:
        return {}
    tries, interval_s = (int(given.get(name, default)) for name, default in CHECKS.items())
    return {"COMFY_BOOT_TIMEOUT_S": str(tries * interval_s)}


def _is_count(text: str) -> bool:
    text = text.strip()
    return text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000


def _comfyui(environ: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    if "CMD" in given:
        return {"COMFYUI_COMMAND": given["CMD"]}
    if "CMD" not in environ:
        return {}
    # An empty CMD says that somebody else starts ComfyUI.
    host = given.get("DIRECT_ADDRESS", "127.0.0.1").strip()
    port = given.get("COMFY_PORT", given.get("COMFYUI_PORT_HOST", "8188")).strip()
    return {} if "COMFY_HOST" in given else {"COMFYUI_URL": f"http://{host}:{port}"}
