"""Never gets as far as defining its function."""
while True:
    pass
