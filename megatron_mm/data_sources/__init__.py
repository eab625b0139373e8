"""Where the data that papers trained on can be had, and what is not known of it. Loads no torch."""
