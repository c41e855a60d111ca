"""MultiPL-E over several languages: one number per model, for all measured languages and for those of the XFT paper."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

# The languages of the paper's multilingual average.
PAPER_LANGUAGES = ("cpp", "php", "rs", "swift", "js", "java")


class Average(BaseModel):
    """Fraction of problems solved (pass@1) by model over the problems of ``languages`` together: each problem has the
    same weight, as in the paper. No standard error: the languages share their problems, so they are not independent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="Title of the average [text]")
    metric: str = Field(description="Its name in metrics [text]")
    languages: list[str] = Field(description="The languages [text]")
    pass_at_1: dict[str, float] = Field(description="pass@1 by model [fraction, 0 to 1]")


def averages(results: Mapping[str, Mapping[str, tuple[int, float]]]) -> list[Average]:
    """The averages over ``results``: the number of problems and pass@1, by model and language.

    Only languages in which every model was graded count. One average is over all of them, the other over those among the
    paper's six, whose number is in its title. Each needs at least two languages.
    """
    results = {model: languages for model, languages in results.items() if languages}
    if not results:
        return []
    first, *others = results.values()
    common = [language for language in first if all(language in other for other in others)]
    paper = [language for language in common if language in PAPER_LANGUAGES]
    found = []
    for languages, title, metric in (
        (common, f"MultiPL-E, {len(common)} languages", "multipl_e"),
        (paper, f"MultiPL-E, {len(paper)} of the paper's 6", "multipl_e_paper"),
    ):
        if len(languages) > 1:
            found.append(Average(title=title, metric=metric, languages=languages, pass_at_1={
                model: _mean([of_model[language] for language in languages]) for model, of_model in results.items()}))
    return found


def _mean(scores: list[tuple[int, float]]) -> float:
    return sum(problems * value for problems, value in scores) / sum(problems for problems, _ in scores)
