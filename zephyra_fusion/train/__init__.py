"""Training: recipes (TOML) in, checkpoints in Hugging Face's formats out."""
