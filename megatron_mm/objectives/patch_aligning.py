"""Patch aligning (EVE, arXiv 2406.11832, section 3.1): the decoder's view of each patch is to be like a teacher's.

The paper says mean squared error between normalised features; the published code 1 - cosine, which is the same number
when the squares are summed over the channels and halved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.config import point
from megavlm.platform.errors import ConfigError

from ..costs import Cost, MicroBatch, Setting
from ..encoders import ENCODERS
from ..flops import Flops
from ..layout import require_divisible
from .base import Objective

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from ..config import ModelConfig, Parallel
    from ..contracts import BuildContext
    from ..decoders.base import Decoder
    from .patch_aligning_model import PatchAligningLoss, Taps
    from .teacher_model import Teacher

FLOAT32 = 4
CLIP = {"name": "clip", "image_size": 336, "layer": -2}


class PatchAligning(Objective):
    """1 - cosine between the teacher's patch and what is read of the decoder's hidden states there, mean per image.

    Tapped are the input of every `every`th layer and what the last norm gives: 0, 4, ..., 32 of 32 layers. The last one
    asks, the others answer: an attention over layers at each place by itself (published code, VisionCompressor).
    """

    name: Literal["patch_aligning"] = "patch_aligning"
    every: PositiveInt = 4  # the paper's interval factor, L / l
    width: PositiveInt = 1024  # of the features that are compared: the teacher's
    heads: PositiveInt = 8
    form: Literal["cosine", "mse"] = "cosine"
    side: PositiveInt = 336  # what the teacher sees: the image on a grey square of this side, at tiling.tile : side
    teacher: point(ENCODERS) = CLIP  # type: ignore[valid-type]  # the teacher: an encoder of one map
    # A folder of Hugging Face's, or "random" for a teacher that knows nothing; null: with the stage's other weights.
    teacher_weights: str | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> PatchAligning:
        require_divisible(self.width, "objectives.width", self.heads, "objectives.heads")
        if self.teacher.image_size != self.side:
            raise ConfigError(
                f"the teacher takes tiles of {self.teacher.image_size} pixels, and is shown squares of {self.side}",
                where="objectives.side",
                fix=f"set objectives.teacher.image_size={self.side}",
            )
        if [each.channels for each in self.teacher.maps] != [self.width]:
            raise ConfigError(
                f"the teacher's maps have {[each.channels for each in self.teacher.maps]} channels, and {self.width} "
                "are compared",
                where="objectives.width",
                fix="set it to the channels of the teacher's one map",
            )
        return self

    @property
    def taps_layers(self) -> bool:
        """See Objective."""
        return True

    @property
    def cell(self) -> int:
        """Side in pixels of what one of the teacher's features stands for, in the square that it sees."""
        return self.side // self.teacher.maps[0].rows

    def taps(self, layers: int) -> list[int]:
        """Tapped hidden states, counted as transformers does: 0 enters the first layer, `layers` left the last norm."""
        return list(range(layers % self.every, layers + 1, self.every))

    def pool(self, model: ModelConfig) -> int:
        """Cells of the encoder, along a side, that are averaged to one of the teacher's."""
        return self.cell * model.tiling.tile // (self.side * model.encoder.cell)

    def grid(self, model: ModelConfig, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the teacher's features of a tile of this height and width."""
        height, width = (edge // (model.encoder.cell * self.pool(model)) for edge in size)
        return height, width

    def cells(self, model: ModelConfig, size: tuple[int, int]) -> int:
        """See Objective."""
        rows, columns = self.grid(model, size)
        return rows * columns

    def cost(self, model: ModelConfig, micro: MicroBatch, setting: Setting) -> Cost:
        """See Objective. Every process of a tensor-parallel group does all of it.

        It is computed again in the backward pass; kept is what was tapped, anew with each tap, as the layers hand it
        on, and float32 copies of what is compared. Beside it: one tap's places, and what becomes of them.
        """
        taps, places = len(self.taps(model.decoder.layers)), micro.visual
        cells = places / self.pool(model) ** 2
        feature, hidden = cells * self.width * setting.size, model.decoder.hidden * setting.size
        kept = taps * (taps - 1) / 2 * feature + 6 * cells * self.width * FLOAT32
        flops = self.flops(model.decoder, 1)
        return Cost(
            weights=self.parameters(model.decoder),
            kept=kept,
            passing=kept,
            spare=2 * (places + cells) * hidden,
            products=cells * flops.weights,
            mixing=cells * flops.mixing,
            moved=taps * (2 * places + 3 * cells) * hidden,
        )

    def teacher_costs(self, setting: Setting) -> tuple[Cost, ...]:
        """See Objective."""
        return self.teacher.costs(setting)

    def fits(self, model: ModelConfig) -> None:
        """See Objective."""
        where = "model.objectives"
        if not model.encoder.any_size or model.connector.cell_places(1, 1) is None:
            what = f"encoder '{model.encoder.name}' and connector '{model.connector.name}' keep no cells apart"
            raise ConfigError(what, where=where, fix="patch aligning wants EVE's: eve or eve_v2, and image_rows")
        if model.injection.has_context:
            raise ConfigError("patch aligning wants visual tokens in the sequence", where=where, fix="inline injection")
        pixels, cell = self.cell * model.tiling.tile, model.encoder.cell
        step = model.tiling.step or model.tiling.tile
        if pixels % (self.side * cell) or step % (pixels // self.side):
            raise ConfigError(
                f"a feature of the teacher stands for {pixels / self.side:g} pixels of a tile, the encoder's cells are "
                f"{cell}, the tiling's steps {step}: each has to divide by the one before",
                where=where,
                fix="EVE: tile 672 in steps of 28, or 1344 in steps of 56, and a teacher of 336 px in patches of 14",
            )

    def check(self, parallel: Parallel) -> None:
        """See Objective."""
        if parallel.cp > 1:
            raise ConfigError(
                f"patch aligning and context parallelism of {parallel.cp}: a cell's places may lie on several ranks",
                where="parallel.cp",
                fix="set parallel.cp=1, or leave patch_aligning out of model.objectives",
            )

    def parameters(self, decoder: Decoder) -> int:
        """A norm and a projection per tap, the way in of the last one, and the way out."""
        taps = len(self.taps(decoder.layers))
        each = 2 * decoder.hidden + decoder.hidden * self.width
        return taps * each + (decoder.hidden + 1) * self.width + (self.width + 1) * self.width

    def teacher_parameters(self) -> int:
        """See Objective."""
        return self.teacher.parameters()

    def flops(self, decoder: Decoder, cells: int) -> Flops:
        """See Objective."""
        taps = len(self.taps(decoder.layers))
        linears = (taps + 1) * decoder.hidden * self.width + self.width**2
        return Flops(weights=2.0 * cells * linears, mixing=4.0 * cells * (taps - 1) * self.width)

    def teacher_flops(self) -> float:
        """See Objective."""
        return self.teacher.flops().forward

    def build(self, model: ModelConfig | None = None) -> PatchAligningLoss:
        """The loss, of a model that has to be said."""
        from .patch_aligning_model import PatchAligningLoss

        assert model is not None

        return PatchAligningLoss(self, model)

    def tapped(self, ctx: BuildContext, model: ModelConfig, decoder: GPTModel) -> Taps:
        """See Objective."""
        from .patch_aligning_model import Taps

        return Taps(self, ctx, model, decoder)

    def build_teacher(self, ctx: BuildContext, model: ModelConfig) -> Teacher:
        """See Objective."""
        from .teacher_model import Teacher

        return Teacher(self, ctx, model)
