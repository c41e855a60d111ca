"""The modelling file that travels with an exported Mixture-of-Experts. Nothing here imports it."""
