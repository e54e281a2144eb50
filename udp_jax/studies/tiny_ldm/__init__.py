"""Trains a small latent diffusion model: first the autoencoder, then U-Net and text encoder."""
