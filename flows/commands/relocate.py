"""``xft relocate``: repair a home that was moved or copied, so that its addresses lead to it."""

from tasks.home import old_places, relocate
from tasks.settings import Settings


def run(current: Settings) -> int:
    """Relocate the home and print what changed; returns the exit status. Raises XftError if the database cannot be changed
    now."""
    places = old_places(current)
    if not places:
        print(f"Nothing to do: no address in {str(current.home)!r} leads elsewhere.")
        return 0
    changed = relocate(current)
    print(f"{changed} addresses that led to {', '.join(map(repr, map(str, places)))} now lead to {str(current.home)!r}.")
    return 0
