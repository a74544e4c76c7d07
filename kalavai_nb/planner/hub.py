"""The config of a model on the hub, and nothing else of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from kalavai_nb.errors import MissingExtra, ModelError

TIMEOUT_SECONDS = 10


def hub_config(name: str) -> dict[str, Any]:
    """What its ``config.json`` says: from the hub, else from an earlier download.

    Raises ModelError where neither has it, MissingExtra without the package.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.utils.tqdm import tqdm as bar
    except ImportError:
        raise MissingExtra(
            f"{name!r} is no folder and no size such as '70B', and a model of the hub needs huggingface_hub: "
            "pip install 'kalavai-nb[models]'."
        ) from None
    repository, _, revision = name.partition("@")
    try:
        # asked first since it does not try again and again where there is no network
        silent: Any = partial(bar, disable=True)
        commit = hub.HfApi().model_info(repository, revision=revision or None, timeout=TIMEOUT_SECONDS).sha
        path: str | None = hub.hf_hub_download(repository, "config.json", revision=commit, tqdm_class=silent)
    # the client raises what its HTTP library raises, too
    except Exception as error:
        path = _downloaded(hub, repository, revision)
        if path is None:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
            raise ModelError(
                f"{name!r} is no folder, file or size here, and its config did not come from the hub ({why}): name a "
                "folder with a config.json, a GGUF file or a size such as '70B', or set HF_TOKEN for a gated model."
            ) from None
    assert path is not None
    config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return config


def _downloaded(hub: Any, repository: str, revision: str) -> str | None:
    try:
        path = hub.try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except (OSError, ValueError):
        return None
    return path if isinstance(path, str) else None
