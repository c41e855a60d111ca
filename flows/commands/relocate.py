"""``xft relocate``: a home that was moved or copied becomes one of its own."""

from tasks.home import old_places, relocate
from tasks.settings import Settings


def run(current: Settings) -> int:
    """Say what was changed; returns the exit status. Raises XftError where the database cannot be changed now."""
    places = old_places(current)
    if not places:
        print(f"Nothing to do: no address of {str(current.home)!r} leads elsewhere.")
        return 0
    changed = relocate(current)
    print(f"{changed} addresses that led to {', '.join(map(repr, map(str, places)))} lead to {str(current.home)!r} now.")
    return 0
