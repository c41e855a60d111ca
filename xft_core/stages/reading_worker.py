"""``python -m xft_core.stages.reading_worker PARENT``: one of the processes that share reading (data/reading.py)."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from xft_core.runtime.process import quiet_libraries
from xft_core.runtime.workers import answer


def start(settings: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """What reads a portion, or tokenises some lines, according to the settings of ``data/reading.py``."""
    quiet_libraries()
    from xft_core.benchmarks.decontaminate import Contamination
    from xft_core.data.pieces import pieces_told
    from xft_core.data.portions import portion_told
    from xft_core.data.reader import Reader, Tokeniser
    from xft_core.data.reading import results_file
    from xft_core.data.tokenize import RowMaker
    from xft_core.models.loading import load_tokenizer
    from xft_core.recipe.sections import DataConfig

    number, directory = settings["number"], Path(settings["directory"])
    results = results_file(directory, number).open("ab")
    maker = None
    if settings["tokenizer"] is not None:
        maker = RowMaker(DataConfig.model_validate(settings["config"]), load_tokenizer(Path(settings["tokenizer"])))

    def write(made: Any) -> None:
        buffer = BytesIO()
        made.write(buffer)
        results.write(buffer.getbuffer())
        results.flush()

    if settings["task"] == "tokenise":
        assert maker is not None
        tokeniser = Tokeniser(directory, number, maker)

        def tokenise(question: Any) -> dict[str, Any]:
            write(tokeniser.sequences(pieces_told(question)))
            return {"number": number}

        return tokenise
    benchmarks = settings["benchmarks"]
    finder = None if benchmarks is None else Contamination([Path(path) for path in benchmarks])
    reader = Reader(directory, number, settings["form"], maker, finder)

    def read(question: Any) -> dict[str, Any]:
        found = reader.read(portion_told(question))
        if found is None:
            return {"number": number, "read": False}
        write(found.part)
        return {"number": number, "read": True, "lines": found.lines, "rows": found.part.rows, "found": found.part.found}

    return read


if __name__ == "__main__":
    answer(start)
