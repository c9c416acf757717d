"""One exception tree: everything the user can mend is an `LlmktError`.

A message says what happened, the value, what is allowed and what to do next. Anything else that escapes
is a defect of ours and shows its traceback.
"""

import difflib
from collections.abc import Iterable


class LlmktError(Exception):
    """Base of every error that a user can act on."""


class StudyError(LlmktError):
    """One or more errors of a study file, reported together.

    Attributes:
        problems: one complete sentence each, in the order in which they were found.
    """

    def __init__(self, problems: Iterable[str], source: str = "the study") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = f"{len(self.problems)} error{'s' if len(self.problems) != 1 else ''}"
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{source} has {count}:\n{lines}")

    def __reduce__(self) -> tuple[type["StudyError"], tuple[tuple[str, ...], str]]:
        return (StudyError, (self.problems, self.source))


class DatasetError(LlmktError):
    """A dataset is absent, lacks a column, or holds values that no method can use."""


class ProfileError(LlmktError):
    """Profiles are unknown, missing, duplicate, empty, or were written from another split."""


class EmbeddingError(LlmktError):
    """A text encoder or a reducer cannot do what the study asks."""


class LayerError(LlmktError):
    """A tap does not exist, never fires, takes no gradient, or does not know the user."""


class TrainingError(LlmktError):
    """A trial cannot be trained as specified."""


class ArtifactError(LlmktError):
    """A stored artifact is missing, half written or does not match its manifest."""


class StorageError(LlmktError):
    """The results folder cannot be used: full, read-only, locked, or another study's."""


class ResourceError(LlmktError):
    """The study asks for hardware or services that are not there."""


class BudgetSpent(LlmktError):
    """What the study may spend on language models is used up; what was paid for is kept, and a larger budget goes on from there."""


class SweepError(LlmktError):
    """The sweep as a whole cannot go on."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> str:
    """Returns the sentence for a lookup that failed, with the closest known names first.

    Args:
        kind: what was looked up, for example "model".
        name: the value that was given.
        known: the allowed names.
        hint: what to do next; appended when given.
    """
    names = sorted(known)
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)
    text = f"{kind} {name!r} is not known"
    if close:
        text += f"; did you mean {' or '.join(repr(folded[c]) for c in close)}?"
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    text += f" Known: {shown}." if close else f"; known: {shown}."
    return f"{text} {hint}".rstrip()


def token_refused(address: str, said: str) -> ResourceError:
    """Returns the error of a cluster that refuses the token; `said` is what it answered."""
    return ResourceError(
        f"the cluster at {address} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's "
        f"(`ray get-auth-token` there prints it). It said: {said.strip().splitlines()[0][:200]}"
    )
