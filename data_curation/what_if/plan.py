"""Which stages a configuration has decided anew, and which verdicts stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from megavlm.platform.errors import ConfigError

from ..config import CurationConfig
from ..fingerprint import stage_fingerprints
from ..run import CurationRun
from ..stages.base import ShardStage, Stage

AS_IT_WAS, ANEW, STANDS = "as it was", "anew", "stands"


@dataclasses.dataclass(frozen=True)
class Plan:
    """`how` maps each stage to AS_IT_WAS before the first change, then to ANEW or, where it keeps what it said of each
    sample, STANDS; `prints` to its fingerprint under `config`.
    """

    config: CurationConfig
    prints: Mapping[str, str]
    how: Mapping[str, str]

    @classmethod
    def of(cls, run: CurationRun, config: CurationConfig) -> Plan:
        """Raises ConfigError for a stage whose verdicts can neither be had anew nor stand for other samples."""
        other = dataclasses.replace(run, config=config)
        other.__dict__["plan"] = run.plan  # a long list of shards is not read again for each configuration
        before, after = stage_fingerprints(run), stage_fingerprints(other)
        changed = [stage for stage in config.stages if before[stage.name] != after[stage.name]]
        how = dict.fromkeys(after, AS_IT_WAS) | {stage.name: _how(stage) for stage in changed}
        return cls(config, after, how)

    @property
    def anew(self) -> list[str]:
        """The stages decided anew, in their order."""
        return [name for name, how in self.how.items() if how == ANEW]


def _how(stage: Stage) -> str:
    if stage.from_sidecars:
        return ANEW
    if stage.judges and not isinstance(stage, ShardStage):
        fix = "ask about stages after it, or let `megavlm curate run` tell, in a copy of the run's folder"
        what = (
            f"stage '{stage.name}' comes after what is asked, looks at all samples at once, and not at sidecars alone"
        )
        raise ConfigError(what, where=f"curation.stages.{stage.name}", fix=fix)
    return STANDS
