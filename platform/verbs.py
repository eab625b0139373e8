"""The table of verbs: what each is called, for whom, what it does, and where its function stands (imported on use).

A target of None is a verb of the contract that is not built yet: it says so and exits 1.
A verb's function takes the arguments after the verb and returns the exit code.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """One line of the command line's contract."""

    audience: str
    help: str
    target: str | None


VERBS: dict[str, Verb] = {
    "demo": Verb(
        "everyone", "the main job, end to end, on real photographs, on the CPU", "megavlm.platform.demo.verb:main"
    ),
    "doctor": Verb(
        "everyone", "what is installed, what is missing, what to run to get it", "megavlm.platform.doctor:main"
    ),
    "recipes list": Verb("everyone", "the shipped recipes", "megavlm.platform.recipes_verb:list_main"),
    "recipes show": Verb(
        "everyone", "a resolved recipe with the origin of every value", "megavlm.platform.recipes_verb:show_main"
    ),
    "recipes diff": Verb("everyone", "where two recipes differ", "megavlm.platform.recipes_verb:diff_main"),
    "report": Verb("everyone", "one self-contained HTML file from a run folder", "megavlm.platform.report.verb:main"),
    "curate run": Verb(
        "data", "curate raw pairs into selected shards; resumes by itself", "megavlm.data_curation.verb:run_main"
    ),
    "curate worker": Verb(
        "data", "one task of a curation stage (what executors start)", "megavlm.data_curation.verb:worker_main"
    ),
    "curate status": Verb(
        "data", "a curation run's stages, counts and reasons", "megavlm.data_curation.verb:status_main"
    ),
    "curate inspect": Verb("data", "what became of one sample", "megavlm.data_curation.inspection.verb:inspect_main"),
    "curate select": Verb(
        "data", "the funnel under another threshold, from sidecars", "megavlm.data_curation.what_if.verb:main"
    ),
    "curate pilot": Verb(
        "data", "a few thousand rows, with measured rates and a forecast", "megavlm.data_curation.pilot.verb:main"
    ),
    "data convert": Verb("data", "other formats to shards", "megavlm.data_curation.convert.verb:main"),
    "data sources": Verb(
        "data", "every data set a recipe wants and its state here", "megavlm.megatron_mm.data_sources.verb:main"
    ),
    "data pack": Verb("data", "write a stage's pack manifest", "megavlm.megatron_mm.data.verb:pack_main"),
    "data inspect": Verb("data", "what one packed sequence holds", "megavlm.megatron_mm.data.verb:inspect_main"),
    "data stats": Verb("data", "fill, tokens and tiles of a pack manifest", "megavlm.megatron_mm.data.verb:stats_main"),
    "data verify": Verb(
        "data", "whether an export's files are those of its manifest", "megavlm.data_curation.export.verify:verify_main"
    ),
    "data remove": Verb(
        "data",
        "take samples down: out of an export, and of later runs",
        "megavlm.data_curation.removal.verb:remove_main",
    ),
    "data trace": Verb(
        "data", "a sample to its packs and steps, or a step to its samples", "megavlm.megatron_mm.data.verb:trace_main"
    ),
    "train": Verb("researcher", "train a recipe's stages; resumes by itself", "megavlm.megatron_mm.training.verb:main"),
    "plan": Verb("researcher", "memory, step time and layouts without a GPU", "megavlm.megatron_mm.planning.verb:main"),
    "convert import": Verb(
        "researcher",
        "published weights into a checkpoint that a stage starts from",
        "megavlm.megatron_mm.conversion.verb:import_main",
    ),
    "convert export": Verb(
        "researcher", "a checkpoint's weights as safetensors", "megavlm.megatron_mm.conversion.verb:export_main"
    ),
    "convert interpolate": Verb(
        "researcher",
        "weights between a trained model and its backbone",
        "megavlm.megatron_mm.conversion.interpolate_verb:main",
    ),
    "convert verify": Verb(
        "researcher",
        "whether a checkpoint holds what was published, and says the same",
        "megavlm.megatron_mm.conversion.verb:verify_main",
    ),
    "eval": Verb("researcher", "benchmarks and the paired text gate", "megavlm.megatron_mm.evaluation.verb:main"),
    "compare": Verb(
        "researcher",
        "several models on the same items: scores, paired differences, what changed",
        "megavlm.megatron_mm.evaluation.compare_verb:main",
    ),
    "study run": Verb(
        "researcher", "an ablation, its table beside the published one", "megavlm.megatron_mm.studies.verb:run_main"
    ),
    "study list": Verb("researcher", "the shipped studies", "megavlm.megatron_mm.studies.verb:list_main"),
    "study show": Verb(
        "researcher", "what a study asks, varies and scores", "megavlm.megatron_mm.studies.verb:show_main"
    ),
    "study report": Verb(
        "researcher", "a study's table anew, from its files", "megavlm.megatron_mm.studies.verb:report_main"
    ),
    "generate": Verb("researcher", "answers from a checkpoint", "megavlm.megatron_mm.inference.verb:main"),
    "serve": Verb("researcher", "an OpenAI-compatible endpoint", "megavlm.megatron_mm.serving.verb:main"),
    "submit": Verb("admin", "validate, then print or submit the Slurm job", "megavlm.slurm.submit:main"),
    "status": Verb("admin", "what a run is doing, from its folder", "megavlm.slurm.status:main"),
    "logs": Verb("admin", "a run's logs", "megavlm.slurm.logs:main"),
    "cancel": Verb("admin", "stop a run", "megavlm.slurm.cancel:main"),
    "requeue": Verb("admin", "run it again where it stopped", "megavlm.slurm.requeue:main"),
    "preflight": Verb("admin", "per-node checks against the fleet's median", "megavlm.slurm.preflight.verb:main"),
}

AUDIENCES = {
    "everyone": "for everyone",
    "data": "for data teams",
    "researcher": "for researchers",
    "admin": "for cluster admins",
}
