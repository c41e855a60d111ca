"""What the report stage is made of: evidence from artifacts, numbers, sentences, plots, model card."""
