"""The parts of the report stage: evidence from artifacts, numbers, sentences, plots and the model card."""
