"""What `udp-jax` runs, and the functions of `import udp_jax`."""
