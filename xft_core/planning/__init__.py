"""What a recipe needs before it runs: memory, disk and time of every stage, from the model's config.json. No torch here."""
