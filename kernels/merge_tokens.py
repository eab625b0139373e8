"""Visual tokens written into the text sequence by index; the backward pass only copies, and so repeats exactly."""

from __future__ import annotations

import torch

from .dispatch import Backend, use_triton


def merge_tokens(
    text: torch.Tensor, visual: torch.Tensor, index: torch.Tensor, *, backend: Backend = "auto"
) -> torch.Tensor:
    """Rows of text [rows, width] with row index[i] replaced by visual[i]; text itself is left as it is.

    `visual` [m, width] has text's dtype, `index` int64 [m] holds rows of text, each at most once (two tokens in one
    place would make the result depend on chance; that is not checked, since it costs a device synchronisation).
    Gradients: of `text`, the output's with the replaced rows zero; of `visual`, the replaced rows; both by plain
    copying, never by atomic sums. Raises ValueError for shapes or dtypes that do not fit.
    """
    _check(text, visual, index)
    if use_triton(text, backend):
        from .merge_tokens_triton import merge_tokens_triton

        return merge_tokens_triton(text, visual, index)
    return merge_tokens_torch(text, visual, index)


def merge_tokens_torch(text: torch.Tensor, visual: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The reference, in plain torch: index_copy's backward pass is index_fill and index_select."""
    return text.index_copy(0, index, visual)


def _check(text: torch.Tensor, visual: torch.Tensor, index: torch.Tensor) -> None:
    if text.dim() != 2 or visual.dim() != 2 or text.shape[1] != visual.shape[1] or text.dtype != visual.dtype:
        raise ValueError(
            f"text {tuple(text.shape)} of {text.dtype} and visual {tuple(visual.shape)} of {visual.dtype} "
            "are not two lists of tokens of one width and dtype"
        )
    if index.dtype != torch.int64 or index.shape != visual.shape[:1]:
        raise ValueError(f"index {tuple(index.shape)} of {index.dtype} is not int64 [{visual.shape[0]}]")
