"""EditAR: image editing and translation as next-token prediction."""
