"""Tensors as bodies of frames: their bytes as they are, with dtype and shape in the head."""

from __future__ import annotations

from typing import Any

import torch


def body_of(tensor: torch.Tensor) -> tuple[dict[str, Any], memoryview]:
    """(what the head says of it, its bytes)."""
    plain = tensor.detach().cpu().contiguous()
    fields = {"dtype": str(plain.dtype).removeprefix("torch."), "shape": list(plain.shape)}
    return fields, memoryview(plain.view(torch.uint8).numpy().data).cast("B")


def tensor_of(fields: dict[str, Any], body: bytearray) -> torch.Tensor:
    """The tensor in a body. Raises ValueError where the head does not fit it."""
    dtype = getattr(torch, str(fields["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a frame holds a tensor of the unknown type {fields['dtype']!r}")
    try:
        return torch.frombuffer(body, dtype=dtype).view(fields["shape"])
    except RuntimeError as error:
        raise ValueError(f"a frame of {len(body)} bytes cannot be {fields['shape']} of {dtype}: {error}") from None
