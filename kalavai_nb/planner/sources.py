"""The shape of what people call a model: a folder, a config, a hub id, a GGUF file, or "70B"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kalavai_nb.errors import MissingExtra, ModelError
from kalavai_nb.planner.family import llama_like, size_of
from kalavai_nb.planner.hub import hub_config
from kalavai_nb.planner.shape import ModelShape


def shape_of(model: Any) -> ModelShape:
    """What a model consists of.

    Parameters
    ----------
    model : str, Path, dict, transformers config or ModelShape
        A folder with a ``config.json``, such a file, or what is in it; a ``.gguf`` file; an id of the Hugging Face hub,
        where the hub can be reached; or a size such as ``"70B"``, for a dense model like a Llama, which says that it is
        assumed.

    Raises
    ------
    ModelError
        There is no such model, or transformers does not know its architecture.
    MissingExtra
        transformers (or gguf) is not installed. A size needs neither.
    """
    if isinstance(model, ModelShape):
        return model
    if isinstance(model, Mapping):
        return _from_dict(dict(model), str(model.get("_name_or_path") or model.get("model_type") or "model"))
    if hasattr(model, "get_text_config"):
        return _from_dict(model.to_dict(), str(model.name_or_path or model.model_type))
    if not isinstance(model, (str, Path)):
        raise ModelError(
            f"a model of {type(model).__name__} cannot be planned: wanted a folder, a GGUF file, a hub id, a config or "
            f"a size such as '70B'."
        )
    return _from_path(Path(model).expanduser()) or _from_name(str(model))


def _from_path(path: Path) -> ModelShape | None:
    """The shape of what is there; None where nothing is."""
    if path.suffix == ".gguf" and path.is_file():
        from kalavai_nb.planner.gguf_file import gguf_shape

        return gguf_shape(path)
    config = path / "config.json" if path.is_dir() else path
    if not config.is_file():
        if path.is_dir():
            raise ModelError(
                f"the folder {path} has no config.json: wanted one as Hugging Face's save_pretrained writes."
            )
        return None
    try:
        return _from_dict(json.loads(config.read_text(encoding="utf-8")), config.parent.resolve().name)
    except (ValueError, AttributeError) as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{config} is no config: {error}.") from None


def _from_name(name: str) -> ModelShape:
    """A size, else a model of the hub."""
    if "/" not in name and (params := size_of(name)) is not None:
        if params < 10**6:
            raise ModelError(f"a model of {name} has less than a million parameters and needs no plan.")
        return llama_like(params)
    if name.endswith(".gguf"):
        raise ModelError(f"there is no file {name}.")
    return _from_dict(hub_config(name), name)


def _from_dict(config: dict[str, Any], name: str) -> ModelShape:
    if find_spec("transformers") is None:
        raise MissingExtra(
            f"the exact shape of {name} needs transformers: pip install 'kalavai-nb[models]'; a size such as '70B' "
            "can be planned without."
        )
    from kalavai_nb.planner.config import config_shape

    return config_shape(json.dumps(config, sort_keys=True, default=str), name)
