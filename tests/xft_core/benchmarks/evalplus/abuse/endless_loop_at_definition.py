"""Never comes to define its function."""
while True:
    pass
