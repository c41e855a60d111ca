"""The model and the data of the middle study: real Python code that every installation of this project has."""
