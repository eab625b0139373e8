"""The stages of a curation. A new stage is one file here and one line in this table; a recipe then names it."""

from megavlm.platform.registry import Registry

STAGES = Registry("curation stage", {
    "links": "megavlm.data_curation.stages.links:Links",
    "ingest": "megavlm.data_curation.stages.ingest:Ingest",
    "filter": "megavlm.data_curation.stages.filter:Filter",
    "decontaminate": "megavlm.data_curation.stages.decontaminate:Decontaminate",
    "embed": "megavlm.data_curation.stages.embed:Embed",
    "cluster": "megavlm.data_curation.stages.cluster:Cluster",
    "assign": "megavlm.data_curation.stages.assign:Assign",
    "deduplicate": "megavlm.data_curation.stages.deduplicate:Deduplicate",
    "select": "megavlm.data_curation.stages.select:Select",
    "recaption": "megavlm.data_curation.stages.recaption:Recaption",
    "check_captions": "megavlm.data_curation.stages.captions:CheckCaptions",
    "export": "megavlm.data_curation.stages.export:Export",
    "text_ingest": "megavlm.data_curation.text.stages.ingest:TextIngest",
    "text_deduplicate": "megavlm.data_curation.text.stages.deduplicate:TextDeduplicate",
    "text_refine": "megavlm.data_curation.text.stages.refine:TextRefine",
    "text_decontaminate": "megavlm.data_curation.text.stages.decontaminate:TextDecontaminate",
    "text_export": "megavlm.data_curation.text.stages.export:TextExport",
})  # fmt: skip
