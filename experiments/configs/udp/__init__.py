"""Configs of `experiments.udp`: those of eudp without the EUDP row."""
