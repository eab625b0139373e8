"""Studies: an ablation is a YAML file of recipe overrides; its table stands beside the published one."""
