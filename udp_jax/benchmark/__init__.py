"""The benchmark: our compiled steps against PyTorch's, on one machine in one run.

`plan` lists the tasks of a config, `runner` does them and keeps bench.json, `race` interleaves the
contestants, each a process of its own behind a pipe (`worker`, `serve`). `jax_worker` and
`torch_worker` are those processes; the latter runs in the environment of the peers and imports
nothing of this package. `flops` counts what a compiled program does, `tables` prints.
"""
