"""Results of the evaluate stage."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from xft_core.store.results.base import Flat, Metrics, Result, ResultFile

NOT_GRADED = "infrastructure_error"


class PassRates(Metrics):
    """pass@k of a model on a benchmark. "base": the benchmark's own tests; "plus": these and the extended tests (the same if
    there are none)."""

    base_pass_at: Annotated[dict[int, float], Flat("base_pass_at_", int)] = Field(description=(
        "pass@k on base tests, by k [fraction, 0 to 1]"))
    plus_pass_at: Annotated[dict[int, float], Flat("plus_pass_at_", int)] = Field(description=(
        "pass@k on base and extended tests, by k [fraction, 0 to 1]"))
    plus_interval_low: float | None = Field(description=(
        "Lower end of the 95% interval of pass@1 on base and extended tests, over problems [fraction, 0 to 1]"))
    plus_interval_high: float | None = Field(description="Upper end of the same interval [fraction, 0 to 1]")
    problems: int = Field(description="Answered problems [count]")
    samples: int | None = Field(description="Answers to all problems together [count]")
    infrastructure_errors: int | None = Field(description=(
        "Answers to problems that cannot be graded here; these problems are not counted [count]"))

    @property
    def plus_pass_at_1(self) -> float | None:
        """pass@1 on base and extended tests, as a fraction."""
        return self.plus_pass_at.get(1)


class EvaluateMetrics(PassRates):
    """All numbers of the stage. A skipped benchmark has no rates."""

    skipped: int | None = Field(description="1 for a benchmark that cannot be graded here; absent for others [count]")
    mean_score: float | None = Field(None, description=(
        "Mean over problems of the fraction of an answer that is right, for tasks that measure it (field F1) [fraction, 0 to "
        "1]"))
    measures: Annotated[dict[str, float], Flat("measure/")] = Field({}, description=(
        "Other measures of a benchmark, by name (acc_norm), over all of its answers [fraction, 0 to 1]"))
    pass_at_1_of_group: Annotated[dict[str, float], Flat("pass_at_1/")] = Field(description=(
        "pass@1 on base and extended tests of each group of problems, by name [fraction, 0 to 1]"))
    seconds: float | None = Field(description="Duration of the start that finished the stage [seconds]")


class GradedSample(Result):
    """One answer with its verdicts: pass, fail, timeout or infrastructure_error (it could not be determined)."""

    base: str = Field(description="Verdict of the base tests [text]")
    plus: str = Field(description="Verdict of base and extended tests together [text]")
    detail: str = Field("", description="Description of the failure [text]")
    solution: str = Field("", description="The program that was graded [text]")
    score: float | None = Field(None, description=(
        "Fraction of the answer that is right, for tasks that report it [fraction, 0 to 1]"))
    measures: dict[str, list[float]] = Field({}, description="Other measures: the number that is right, and the total [count]")

    def verdict(self, tests: str) -> str:
        """The verdict of the "base" or "plus" tests."""
        assert tests in ("base", "plus")
        return self.base if tests == "base" else self.plus


class GradedProblem(Result):
    """One problem and its answers."""

    task_id: str = Field(description="Name of the problem, unique in its benchmark [text]")
    groups: dict[str, str] = Field({}, description="Group of the problem, by criterion (library) [text]")
    samples: list[GradedSample] = Field(description="Its answers, in the order in which they were generated")


class GradedBenchmark(Result):
    """The benchmark that was graded."""

    file: str | None = Field(None, description="Name of its file [text]")
    sha256: str | None = Field(None, description="Digest of its file [sha256]")
    kind: str | None = Field(None, description="Kind of benchmark: EvalPlus, DS-1000, MultiPL-E [text]")
    language: str | None = Field(None, description="Programming language, for MultiPL-E only [text]")
    extended_tests: bool = Field(True, description="Whether \"plus\" differs from \"base\" [yes or no]")
    problems: int | None = Field(None, description="Answered problems [count]")


class GroupScore(Result):
    """pass@1 of a group of problems."""

    problems: int = Field(description="Graded problems of the group [count]")
    pass_at_1: float = Field(description="pass@1 on base and extended tests [fraction, 0 to 1]")


class EvaluationFile(ResultFile):
    """results.json of the evaluate stage. The conditions of verdicts differ by kind of benchmark."""

    file_name: ClassVar[str] = "results.json"
    benchmark: GradedBenchmark = Field(GradedBenchmark(), description="The graded benchmark")
    skipped: str | None = Field(None, description="Why nothing could be graded here; absent if grading was possible [text]")
    release: str | None = Field(None, description="evalplus release that the file is identical to, bit by bit [text]")
    unpacked_sha256: str | None = Field(None, description="Digest of the unpacked benchmark, for EvalPlus only [sha256]")
    evalplus_version: str | None = Field(None, description="Version of evalplus used for grading [text]")
    ds1000: dict[str, Any] | None = Field(None, description=(
        "Environment used for grading, for DS-1000 only [names and versions]"))
    toolchain: str | None = Field(None, description="Version of the compiler, for MultiPL-E only [text]")
    sandbox: str | None = Field(None, description="Sandbox of the programs [text]")
    limits: dict[str, Any] | None = Field(None, description="Limits of one program [seconds and MiB, as each name says]")
    cpu: str | None = Field(None, description="Name of the processor [text]")
    problems: list[GradedProblem] = Field(description="The problems in the benchmark's order; empty if skipped")
    groups: dict[str, dict[str, GroupScore]] = Field({}, description="pass@1 by criterion and group")

    def conditions(self) -> dict[str, Any]:
        """The conditions that verdicts depend on besides the samples, by name. Other facts may legitimately differ."""
        return {"sandbox": self.sandbox, "limits": self.limits, "evalplus_version": self.evalplus_version, "cpu": self.cpu}
