"""A ViT on transformers' layers; ours are the way in (one pass over the pixels) and which hidden states come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megavlm.kernels.tile_normalise import tile_normalise
from megavlm.kernels.torchvision import load

from ..contracts import BuildContext, FeatureMap
from .building import without_values
from .positions import resized

if TYPE_CHECKING:
    from .replicated import Replicated

Between = Callable[[int, Tensor], Tensor]  # number of a layer, what it gave -> what the next one gets


def unchanged(number: int, x: Tensor) -> Tensor:
    """Nothing happens between the layers."""
    return x


class ReplicatedViT(nn.Module):
    """Tiles [n, 3, H, W] in 0..255 -> FeatureMaps of n * rows * columns tokens, one for each wanted layer.

    The parameters have the names of the published checkpoints, those of a vision model alone ("vision_model. ...").
    """

    def __init__(self, spec: Replicated, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.recompute = spec, ctx.recompute == "full"
        self.vision_model = _layers(spec, ctx.params_dtype)
        embeddings = self.vision_model.embeddings
        tables = [embeddings.position_embedding.weight]
        for table in [*tables, embeddings.class_embedding] if spec.class_tokens else tables:
            setattr(table, "init_std", 0.02)  # noqa: B010

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 [n, 3, H, W] (float where pixels want a gradient) -> FeatureMaps of [n * rows * columns, hidden]."""
        spec = self.spec
        states = {depth: x for depth, x in enumerate(self.states(tiles)) if depth in spec.depths}
        images = torch.arange(len(tiles), device=tiles.device)
        return [
            FeatureMap(self._patches(states[depth]), spec.grid, images, expert=spec.name, layer=layer)
            for layer, depth in zip(spec.wanted, spec.depths, strict=True)
        ]

    def states(self, tiles: Tensor, between: Between = unchanged) -> Iterator[Tensor]:
        """The hidden states [n, tokens, hidden], one by one: the embeddings, then what each layer gives.

        `between(number, x)` says what goes on in place of what layer `number`, counted from 1, gives. The norm after
        the last layer, where the features pass one, comes afterwards.
        """
        spec, model = self.spec, self.vision_model
        x = self._embedded(tiles)
        x = model.pre_layrnorm(x) if spec.entry_norm else x
        yield x
        for number, layer in enumerate(model.encoder.layers, start=1):  # no mask: every patch sees every other
            x = checkpoint(layer, x, None, use_reentrant=False) if self.recompute else layer(x, None)
            x = between(number, x)
            yield model.post_layernorm(x) if spec.ends_in_norm and number == spec.depth else x

    def _patches(self, x: Tensor) -> Tensor:
        """[n, tokens, hidden] -> [n * rows * columns, hidden], without the class token."""
        return x[:, self.spec.class_tokens :].reshape(-1, self.spec.hidden)

    def _embedded(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> [n, tokens, hidden]; the convolution is one matrix product over patches."""
        spec, embeddings = self.spec, self.vision_model.embeddings
        height, width = (count * spec.patch_size for count in spec.grid)
        weight, bias = embeddings.patch_embedding.weight, embeddings.patch_embedding.bias
        seen = tiles[:, :, :height, :width]
        pixels = tile_normalise(seen, spec.patch_size, spec.mean, spec.std, dtype=weight.dtype)
        x = F.linear(pixels, weight.flatten(1), bias)
        positions = resized(embeddings.position_embedding.weight, spec.table, spec.grid)
        if spec.class_tokens:
            x = torch.cat([embeddings.class_embedding.expand(len(x), 1, -1), x], dim=1)
        return x + positions[len(positions) - x.shape[1] :]  # a class token that was dropped leaves its position


def _layers(spec: Replicated, dtype: torch.dtype) -> Any:
    """transformers' vision model, up to the hidden state that is wanted."""
    load()
    import transformers

    config = getattr(transformers, f"{spec.family}Config")(
        hidden_size=spec.hidden,
        intermediate_size=spec.ffn,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        image_size=spec.trained_side,
        patch_size=spec.patch_size,
        hidden_act=spec.activation,
        layer_norm_eps=spec.norm_eps,
        vision_use_head=False,  # SigLIP's pooling; CLIP has none
        attn_implementation="sdpa",
    )
    model = without_values(partial(getattr(transformers, f"{spec.family}Model"), config), dtype)
    del model.embeddings.position_ids  # a list of all positions, which now holds anything
    if spec.trained_with_class_token and not spec.class_tokens:
        del model.embeddings.class_embedding
    if not spec.ends_in_norm:
        del model.post_layernorm
    return model
