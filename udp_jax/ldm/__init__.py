"""Training a small latent diffusion model: autoencoder first, then U-Net and text encoder."""
