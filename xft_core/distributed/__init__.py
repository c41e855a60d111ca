"""A stage in several processes: starting them (torchrun's own launcher), what each does, and the sharded training state."""
