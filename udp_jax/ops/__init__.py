"""Diffusion and image primitives that need only jax and numpy, for use in any JAX project."""

from udp_jax.ops import attention as attention
from udp_jax.ops import bands as bands
from udp_jax.ops import chain as chain
from udp_jax.ops import control as control
from udp_jax.ops import conv as conv
from udp_jax.ops import dpm_solver as dpm_solver
from udp_jax.ops import dropout as dropout
from udp_jax.ops import filters as filters
from udp_jax.ops import frechet as frechet
from udp_jax.ops import guidance as guidance
from udp_jax.ops import image as image
from udp_jax.ops import jpeg as jpeg
from udp_jax.ops import keys as keys
from udp_jax.ops import linear as linear
from udp_jax.ops import morphology as morphology
from udp_jax.ops import norm as norm
from udp_jax.ops import projections as projections
from udp_jax.ops import samplers as samplers
from udp_jax.ops import schedules as schedules
from udp_jax.ops import similarity as similarity
from udp_jax.ops import superpixels as superpixels
from udp_jax.ops import tiles as tiles
from udp_jax.ops import timesteps as timesteps
from udp_jax.ops import visibility as visibility
from udp_jax.ops import winograd as winograd
