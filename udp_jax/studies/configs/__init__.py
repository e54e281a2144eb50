"""Building blocks of configs, and the configs that `udp-jax` runs: a package an experiment."""
