"""The funnel of a finished run under other thresholds: measurements stay, decisions are taken anew elsewhere."""
