"""The benchmark: our compiled steps against PyTorch's, on one machine in one run.

`plan` lists the tasks of a config, `runner` runs them and keeps bench.json, `race` interleaves the
contestants, each a process of its own behind a pipe (`worker`, `serve`). These processes are
`jax_worker` and `torch_worker`; the latter runs in the peers' environment and imports nothing of
this package. `hlo` reads a compiled program, `flops` counts its operations, `roofline` its
bytes and kernels on a GPU; `tables` prints.
"""
