"""Configs of `experiments.udp`: those of `experiments.eudp` without the rows of EUDP."""
