"""The model and the data of the middle study: real Python code that is at hand wherever this project is installed."""
